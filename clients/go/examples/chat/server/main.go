// The server of a chat: what a client writes is shown here and passed on to
// the other clients, and what is typed here goes to all of them.
package main

import (
	"bufio"
	"context"
	"flag"
	"fmt"
	"log"
	"os"
	"os/signal"
	"sync"

	p2pnode "github.com/p2p-node/p2p-node/clients/go"
)

// Line is the body of a message: both sides agree on it, the daemon does not
// look inside.
type Line struct {
	Name string `json:"name"`
	Text string `json:"text"`
}

func main() {
	name := flag.String("name", "server", "what to be called")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, *name); err != nil && ctx.Err() == nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context, name string) error {
	// From now on clients find this node by its role.
	node, err := p2pnode.DialServer(ctx)
	if err != nil {
		return err
	}
	defer node.Close()
	fmt.Println("ready:", node.PeerID())

	// A sender waits for nobody: a client that is away gets it all later.
	sender := node.NewSender(ctx)
	var clients sync.Map
	tell := func(line Line, except string) {
		message, _ := p2pnode.JSON(line)
		message.Channel = "chat"
		clients.Range(func(peer, _ any) bool {
			if peer != except {
				if _, err := sender.Send(ctx, peer.(string), message); err != nil {
					log.Println(err)
				}
			}
			return true
		})
	}
	go func() {
		for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
			tell(Line{name, lines.Text()}, "")
		}
	}()
	for delivery, err := range node.Messages(ctx, "chat") {
		if err != nil {
			return err
		}
		clients.Store(delivery.From, true)
		var line Line
		if err := delivery.DecodeJSON(&line); err != nil {
			log.Println(err)
			continue
		}
		fmt.Printf("%s: %s\n", line.Name, line.Text)
		tell(line, delivery.From)
	}
	return nil
}
