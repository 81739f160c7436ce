package p2pnode_test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	p2pnode "github.com/p2p-node/p2p-node/clients/go"
)

// build compiles a program of this module.
func build(t *testing.T, directory string) string {
	t.Helper()
	binary := filepath.Join(t.TempDir(), filepath.Base(directory))
	out, err := exec.Command("go", "build", "-o", binary, "./"+directory).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", directory, err, out)
	}
	return binary
}

// program is a running one.
type program struct {
	command *exec.Cmd
	input   io.WriteCloser
	lines   chan string
}

// launch runs a program against a daemon.
func launch(t *testing.T, binary string, daemon *p2pnode.Daemon, args ...string) *program {
	t.Helper()
	command := exec.CommandContext(within(t), binary, args...)
	command.Env = append(os.Environ(), "P2P_NODE_SOCKET="+daemon.Socket())
	command.Stderr = os.Stderr
	input, err := command.StdinPipe()
	must(t, err)
	output, err := command.StdoutPipe()
	must(t, err)
	must(t, command.Start())
	p := &program{command: command, input: input, lines: make(chan string, 1024)}
	read := make(chan struct{})
	go func() {
		defer close(read)
		defer close(p.lines)
		for lines := bufio.NewScanner(output); lines.Scan(); {
			p.lines <- lines.Text()
		}
	}()
	t.Cleanup(func() {
		command.Process.Kill()
		<-read
		command.Wait()
	})
	return p
}

// line waits for the next line of output.
func (p *program) line(t *testing.T) string {
	t.Helper()
	select {
	case line, open := <-p.lines:
		if !open {
			t.Fatal("the program ended")
		}
		return line
	case <-within(t).Done():
		t.Fatal("no line in time")
	}
	return ""
}

func (p *program) expect(t *testing.T, want string) {
	t.Helper()
	if line := p.line(t); line != want {
		t.Fatalf("got %q, want %q", line, want)
	}
}

func (p *program) say(t *testing.T, line string) {
	t.Helper()
	_, err := io.WriteString(p.input, line+"\n")
	must(t, err)
}

func TestTheChat(t *testing.T) {
	a, b := pair(t)
	lacks(t, a.SetPresence(within(t), "", "probe"))
	server := launch(t, build(t, "examples/chat/server"), a.Daemon)
	server.expect(t, "ready: "+a.PeerID())
	client := launch(t, build(t, "examples/chat/client"), b.Daemon, "-name", "bob")
	client.expect(t, "talking to "+a.PeerID())
	client.say(t, "hello")
	server.expect(t, "bob: hello")
	server.say(t, "hello yourself")
	client.expect(t, "server: hello yourself")
}

func TestTheSensor(t *testing.T) {
	a, b := pair(t)
	sensor := launch(t, build(t, "examples/sensor"), a.Daemon, "-to", b.PeerID(), "-every", "10ms")
	for n := 1; n <= 3; n++ {
		if line := sensor.line(t); !strings.HasSuffix(line, fmt.Sprintf(" C, message %d", n)) {
			t.Fatal(line)
		}
	}
	for _, payload := range take(t, b.Node, "readings", 3) {
		var reading struct{ Celsius float64 }
		must(t, json.Unmarshal([]byte(payload), &reading))
		if reading.Celsius < 1 || reading.Celsius > 100 {
			t.Fatal(payload)
		}
	}
}

// The receiver is killed while messages come, with a torn line in its file.
func TestTheReceiverWritesEachMessageOnce(t *testing.T) {
	const messages = 3000
	node := start(t)
	n := dial(t, node)
	ctx := within(t)
	binary, file := build(t, "internal/receiver"), filepath.Join(t.TempDir(), "log")
	args := []string{"-file", file, "-channel", "flow", "-count", fmt.Sprint(messages)}
	first := launch(t, binary, node, args...)
	sender := n.NewSender(ctx)
	for at := range messages {
		_, err := sender.Send(ctx, n.PeerID(), p2pnode.Message{Payload: fmt.Append(nil, at), Channel: "flow"})
		must(t, err)
		if at == messages/2 {
			must(t, sender.Flush(ctx))
			eventually(t, "it wrote something", func() bool {
				info, err := os.Stat(file)
				return err == nil && info.Size() > 0
			})
			must(t, first.command.Process.Kill())
			eventually(t, "it ended", func() bool { return ended(first) })
			out, err := os.OpenFile(file, os.O_APPEND|os.O_WRONLY, 0)
			must(t, err)
			_, err = out.WriteString("123")
			must(t, err)
			must(t, out.Close())
		}
	}
	must(t, sender.Close())
	second := launch(t, binary, node, args...)
	if line := second.line(t); !strings.HasPrefix(line, fmt.Sprintf("%d lines", messages)) {
		t.Fatal(line)
	}
	text, err := os.ReadFile(file)
	must(t, err)
	for at, line := range strings.Split(strings.TrimSpace(string(text)), "\n") {
		if _, payload, _ := strings.Cut(line, " "); payload != fmt.Sprint(at) {
			t.Fatalf("line %d: %q", at, line)
		}
	}
}

// ended tells whether all output of a program was read.
func ended(p *program) bool {
	for {
		select {
		case _, open := <-p.lines:
			if !open {
				return true
			}
		default:
			return false
		}
	}
}
