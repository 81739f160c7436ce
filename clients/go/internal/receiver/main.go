// The receiver of a test: appends what arrives on a channel to a file, one
// line "CURSOR PAYLOAD" for each message, and ends after so many of them. The
// file is its only memory: killed at any moment and started again, it goes on
// behind the last whole line, and writes nothing twice.
package main

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"io"
	"log"
	"os"
	"time"

	p2pnode "github.com/p2p-node/p2p-node/clients/go"
)

func main() {
	path := flag.String("file", "", "file to append to")
	socket := flag.String("socket", "", "the daemon's socket, if not the usual one")
	channel := flag.String("channel", "", "channel to read")
	count := flag.Int("count", 0, "lines that the file shall have; 0: no end")
	timeout := flag.Duration("timeout", 0, "give up after so long; 0: never")
	flag.Parse()
	ctx := context.Background()
	if *timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, *timeout)
		defer cancel()
	}
	if err := run(ctx, *path, *socket, *channel, *count); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context, path, socket, channel string, count int) error {
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	defer file.Close()
	lines, last, err := recall(file)
	if err != nil {
		return err
	}
	var options []p2pnode.Option
	if socket != "" {
		options = append(options, p2pnode.WithSocket(socket))
	}
	node, err := p2pnode.Dial(ctx, options...)
	if err != nil {
		return err
	}
	defer node.Close()
	started, before := time.Now(), lines
	for batch, err := range node.Batches(ctx, channel, p2pnode.After(last)) {
		if err != nil {
			return fmt.Errorf("after %d lines: %w", lines, err)
		}
		var text bytes.Buffer
		for _, delivery := range batch {
			// The package leaves out what is behind; so does this test, which
			// is not to depend on it.
			if delivery.Cursor <= last {
				continue
			}
			last = delivery.Cursor
			lines++
			fmt.Fprintf(&text, "%d %s\n", delivery.Cursor, delivery.Payload)
		}
		if _, err := file.Write(text.Bytes()); err != nil {
			return err
		}
		if err := file.Sync(); err != nil {
			return err
		}
		if count > 0 && lines >= count {
			batch[len(batch)-1].Ack()
			break
		}
	}
	fmt.Printf("%d lines, %d of them now, in %s\n", lines, lines-before, time.Since(started).Round(time.Millisecond))
	return nil
}

// recall counts the whole lines, cuts off a torn one, and returns the last
// cursor.
func recall(file *os.File) (lines int, last uint64, err error) {
	text, err := io.ReadAll(file)
	if err != nil {
		return 0, 0, err
	}
	whole := text[:bytes.LastIndexByte(text, '\n')+1]
	lines = bytes.Count(whole, []byte("\n"))
	if lines > 0 {
		end := whole[bytes.LastIndexByte(whole[:len(whole)-1], '\n')+1:]
		if _, err := fmt.Fscan(bytes.NewReader(end), &last); err != nil {
			return 0, 0, fmt.Errorf("line %d of %s: %w", lines, file.Name(), err)
		}
	}
	if len(whole) < len(text) {
		if err := file.Truncate(int64(len(whole))); err != nil {
			return 0, 0, err
		}
	}
	_, err = file.Seek(int64(len(whole)), io.SeekStart)
	return lines, last, err
}
