// A sensor: sends a reading every few seconds, wherever the receiver is.
// Readings made while it is away are on disk and arrive later, in order, once
// each. On the other side: p2p-node listen --channel readings
package main

import (
	"context"
	"flag"
	"fmt"
	"log"
	"math/rand/v2"
	"os"
	"os/signal"
	"time"

	p2pnode "github.com/p2p-node/p2p-node/clients/go"
)

// Reading is the body of a message.
type Reading struct {
	Celsius float64   `json:"celsius"`
	At      time.Time `json:"at"`
}

func main() {
	to := flag.String("to", "laptop", "peer id or alias of who gets the readings")
	every := flag.Duration("every", 5*time.Second, "between two readings")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, *to, *every); err != nil && ctx.Err() == nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context, to string, every time.Duration) error {
	node, err := p2pnode.Dial(ctx)
	if err != nil {
		return err
	}
	defer node.Close()
	for tick := time.Tick(every); ; {
		reading := Reading{Celsius: measure(), At: time.Now()}
		// On disk is enough: the daemon takes care of the rest.
		sent, err := node.SendJSON(ctx, to, "readings", reading, p2pnode.UntilQueued())
		if err != nil {
			return err
		}
		fmt.Printf("%.1f C, message %d\n", reading.Celsius, sent.Sequence)
		select {
		case <-tick:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// measure stands for a thermometer.
func measure() float64 { return 20 + rand.NormFloat64() }
