// A client of the chat: it finds the server among the trusted peers by
// itself, sends it what is typed, and shows what comes back.
package main

import (
	"bufio"
	"context"
	"flag"
	"fmt"
	"log"
	"os"
	"os/signal"
	"os/user"

	p2pnode "github.com/p2p-node/p2p-node/clients/go"
)

// Line is the body of a message: both sides agree on it, the daemon does not
// look inside.
type Line struct {
	Name string `json:"name"`
	Text string `json:"text"`
}

func main() {
	name := flag.String("name", userName(), "what to be called")
	server := flag.String("server", "", "peer id or alias of the server; found by its role if empty")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, *name, *server); err != nil && ctx.Err() == nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context, name, server string) error {
	node, err := p2pnode.Dial(ctx)
	if err != nil {
		return err
	}
	defer node.Close()
	if server == "" {
		peer, err := node.FindRole(ctx, p2pnode.RoleServer)
		if err != nil {
			return err
		}
		server = peer.PeerId
	}
	fmt.Println("talking to", server)

	go func() {
		for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
			sent, err := node.SendJSON(ctx, server, "chat", Line{name, lines.Text()})
			if err != nil {
				log.Println(err)
			} else if sent.State != p2pnode.StateStored {
				fmt.Println("(on its way:", sent.Detail+")")
			}
		}
	}()
	for delivery, err := range node.Messages(ctx, "chat") {
		if err != nil {
			return err
		}
		var line Line
		if err := delivery.DecodeJSON(&line); err != nil {
			log.Println(err)
			continue
		}
		fmt.Printf("%s: %s\n", line.Name, line.Text)
	}
	return nil
}

func userName() string {
	if who, err := user.Current(); err == nil {
		return who.Username
	}
	return "client"
}
