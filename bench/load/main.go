// The load driver: so many sessions, each asking so many turns at times that are fixed before the
// first of them, whatever the server does (open loop). Every latency is taken from the time at
// which something was due, not from when it could be done, so that no wait is left out.
//
//	load -door grpc|web|sse|bare-grpc|bare-sse [flags]
//
// It speaks with whoever started it by lines: `ready` when all sessions are open; then it waits for
// a line, asks all turns, says `done` and waits for another line; then come the stops, if any, and
// its report, one line of JSON. Between its lines nothing runs, so that whoever watches the
// server's CPU time and memory can look.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"log"
	"os"
	"sync"
	"time"
)

type settings struct {
	door        string
	server      string
	edge        string
	sessions    int
	connections int
	rate        float64
	tokens      int
	turns       int
	stops       int
	pause       time.Duration
	ramp        time.Duration
	patience    time.Duration
	seed        int64
}

func parse() settings {
	var s settings
	flag.StringVar(&s.door, "door", "grpc", "grpc, web, sse, bare-grpc or bare-sse")
	flag.StringVar(&s.server, "server", "", "the gRPC address, also for creating sessions; of a bare server its own")
	flag.StringVar(&s.edge, "edge", "", "Envoy's address, for web and sse")
	flag.IntVar(&s.sessions, "sessions", 40, "at the same time")
	flag.IntVar(&s.connections, "connections", 8, "of gRPC, shared by the sessions")
	flag.Float64Var(&s.rate, "rate", 50, "tokens a second of each session")
	flag.IntVar(&s.tokens, "tokens", 100, "a turn")
	flag.IntVar(&s.turns, "turns", 3, "of each session")
	flag.IntVar(&s.stops, "stops", 0, "turns of each session that are stopped, after the others")
	flag.DurationVar(&s.pause, "pause", 100*time.Millisecond, "between a turn's due end and the next")
	flag.DurationVar(&s.ramp, "ramp", time.Second, "first turns begin at random within it")
	flag.DurationVar(&s.patience, "patience", time.Minute, "beyond the due end of the last turn")
	flag.Int64Var(&s.seed, "seed", 1, "of all that is random")
	flag.Parse()
	if flag.NArg() > 0 {
		log.Fatalf("what is %q? see -help", flag.Arg(0))
	}
	if s.sessions < 1 || s.connections < 1 || s.rate <= 0 || s.tokens < 1 || s.turns < 1 || s.stops < 0 {
		log.Fatal("sessions, connections, rate, tokens and turns must be more than 0")
	}
	return s
}

// play has every session ask its turns (and stop them, where stops are planned), and returns when
// all have ended.
func play(ctx context.Context, talks []conversation, plans [][]planned, m *measures) error {
	begin := time.Now().Add(50 * time.Millisecond)
	var talkers sync.WaitGroup
	failures := make(chan error, len(talks))
	for number, talk := range talks {
		record := newRecord(begin, plans[number], m)
		talkers.Add(1)
		go func() {
			defer talkers.Done()
			if err := one(ctx, talk, record); err != nil {
				failures <- fmt.Errorf("session %d: %w", number, err)
			}
		}()
	}
	talkers.Wait()
	select {
	case err := <-failures:
		return err
	default:
		return nil
	}
}

// one is a session's part of play.
func one(ctx context.Context, talk conversation, record *record) error {
	talk.begin(record)
	for number, turn := range record.plan {
		if err := sleepUntil(ctx, record.begin.Add(turn.at)); err != nil {
			return err
		}
		record.m.sent(time.Since(record.begin.Add(turn.at)))
		if err := talk.say(ctx, number); err != nil {
			return fmt.Errorf("turn %d: %w", number, err)
		}
		if turn.stop > 0 {
			if err := sleepUntil(ctx, record.begin.Add(turn.stop)); err != nil {
				return err
			}
			if err := talk.stop(ctx, number); err != nil {
				return fmt.Errorf("stop of turn %d: %w", number, err)
			}
		}
	}
	select {
	case <-record.over:
		return record.failure()
	case <-ctx.Done():
		return fmt.Errorf("%d of %d turns ended in time", record.ended(), len(record.plan))
	}
}

func sleepUntil(ctx context.Context, due time.Time) error {
	timer := time.NewTimer(time.Until(due))
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func main() {
	log.SetFlags(0)
	s := parse()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	lines := bufio.NewScanner(os.Stdin)
	say := func(line string) {
		fmt.Println(line)
		if !lines.Scan() {
			log.Fatal("whoever started this has gone")
		}
	}

	door, err := openDoor(s)
	if err != nil {
		log.Fatal(err)
	}
	talks, err := openAll(ctx, door, s)
	if err != nil {
		log.Fatal(err)
	}
	random := newRandom(s.seed)
	turns, last := plan(s, random)
	m := newMeasures()

	say("ready")
	limited, done := context.WithTimeout(ctx, last+s.patience)
	m.start()
	if err := play(limited, talks, turns, m); err != nil {
		log.Fatal(err)
	}
	m.finish()
	done()
	say("done")

	stopped := newMeasures()
	if s.stops > 0 {
		stops, last := planStops(s, random)
		limited, done := context.WithTimeout(ctx, last+s.patience)
		if err := play(limited, talks, stops, stopped); err != nil {
			log.Fatal(err)
		}
		done()
	}
	if err := each(s.sessions, func(number int) error { return talks[number].end(ctx) }); err != nil {
		log.Fatalf("end: %v", err)
	}
	if err := json.NewEncoder(os.Stdout).Encode(m.report(s, stopped)); err != nil {
		log.Fatal(err)
	}
}
