package main

import (
	"math/rand"
	"time"
)

// planned is one turn: when it is to be asked, and when stopped (0: not), both since the beginning.
type planned struct {
	at   time.Duration
	stop time.Duration
}

func newRandom(seed int64) *rand.Rand { return rand.New(rand.NewSource(seed)) }

func (s settings) length() time.Duration {
	return time.Duration(float64(s.tokens) / s.rate * float64(time.Second))
}

// plan fixes when every turn of every session is asked, and tells when the last is due to end.
func plan(s settings, random *rand.Rand) ([][]planned, time.Duration) {
	sessions := make([][]planned, s.sessions)
	var last time.Duration
	for number := range sessions {
		at := time.Duration(random.Float64() * float64(s.ramp))
		for range s.turns {
			sessions[number] = append(sessions[number], planned{at: at})
			at += s.length() + s.pause
		}
		last = max(last, at)
	}
	return sessions, last
}

// A stop comes at a random moment between these, after its turn was asked.
const (
	earliestStop = 200 * time.Millisecond
	latestStop   = 700 * time.Millisecond
)

// planStops does the same for turns that are stopped.
func planStops(s settings, random *rand.Rand) ([][]planned, time.Duration) {
	sessions := make([][]planned, s.sessions)
	var last time.Duration
	for number := range sessions {
		at := time.Duration(random.Float64() * float64(s.ramp))
		for range s.stops {
			wait := time.Duration(random.Float64() * float64(latestStop-earliestStop))
			stop := at + earliestStop + wait
			sessions[number] = append(sessions[number], planned{at: at, stop: stop})
			at = stop + s.pause
		}
		last = max(last, at)
	}
	return sessions, last
}
