package p2pnode_test

import (
	"context"
	"fmt"
	"log"

	p2pnode "github.com/p2p-node/p2p-node/clients/go"
)

func Example() {
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	defer cancel()
	// A private daemon; Dial alone connects to the one installed.
	daemon, err := p2pnode.StartDaemon(ctx)
	if err != nil {
		log.Fatal(err)
	}
	defer daemon.Close()
	node, err := daemon.Dial(ctx)
	if err != nil {
		log.Fatal(err)
	}
	defer node.Close()
	sent, err := node.Send(ctx, node.PeerID(), p2pnode.Message{Payload: []byte("a note to myself")})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(sent.State)
	for delivery, err := range node.Messages(ctx, "") {
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(string(delivery.Payload))
		delivery.Ack()
		break
	}
	// Output:
	// MESSAGE_STATE_STORED
	// a note to myself
}

func ExampleNode_NewSender() {
	ctx := context.Background()
	node, err := p2pnode.Dial(ctx)
	if err != nil {
		log.Fatal(err)
	}
	sender := node.NewSender(ctx)
	for n := range 1000 {
		if _, err := sender.Send(ctx, "laptop", p2pnode.Message{Payload: fmt.Append(nil, n)}); err != nil {
			log.Fatal(err)
		}
	}
	// All are on disk after this, or the first refusal is told.
	if err := sender.Close(); err != nil {
		log.Fatal(err)
	}
}
