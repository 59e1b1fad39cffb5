package main

import (
	"fmt"
	"sync"
	"syscall"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// Of histograms: microseconds up to a minute, to three digits.
const (
	highest = int64(60_000_000)
	digits  = 3
)

// bars is a histogram as it is reported: [microseconds, how many], none empty.
type bars [][2]int64

func barsOf(histogram *hdrhistogram.Histogram) bars {
	found := bars{}
	for _, bar := range histogram.Distribution() {
		if bar.Count > 0 {
			found = append(found, [2]int64{bar.To, bar.Count})
		}
	}
	return found
}

// measures is what all sessions have seen together.
type measures struct {
	mutex  sync.Mutex
	added  *hdrhistogram.Histogram
	way    *hdrhistogram.Histogram
	ttft   *hdrhistogram.Histogram
	late   *hdrhistogram.Histogram
	stops  *hdrhistogram.Histogram
	tokens int64
	frames int64
	turns  int64

	begin time.Time
	wall  time.Duration
	cpu   time.Duration
}

func newMeasures() *measures {
	empty := func() *hdrhistogram.Histogram { return hdrhistogram.New(1, highest, digits) }
	return &measures{added: empty(), way: empty(), ttft: empty(), late: empty(), stops: empty()}
}

func (m *measures) start() {
	m.begin, m.cpu = time.Now(), cpu()
}

func (m *measures) finish() {
	m.wall, m.cpu = time.Since(m.begin), cpu()-m.cpu
}

// put takes a value in; one that no histogram holds is as good as a failure.
func put(histogram *hdrhistogram.Histogram, value time.Duration) {
	// Less than a microsecond, and what two clocks a little apart make negative, is one.
	us := min(max(value.Microseconds(), 1), highest)
	if err := histogram.RecordValue(us); err != nil {
		panic(err)
	}
}

func (m *measures) sent(late time.Duration) {
	m.mutex.Lock()
	defer m.mutex.Unlock()
	put(m.late, late)
}

// cpu is the processor time of this process.
func cpu() time.Duration {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		panic(err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

// report is what is printed in the end. Histograms are in microseconds:
//
//   - added: every token, from when the engine's pace has it due (the turn's due time plus its place
//     by the rate) until it was read;
//   - way: every token, from the server's own timestamp until it was read;
//   - ttft: the first token of each turn, from when the turn was due to be asked;
//   - late: by how much this driver asked too late;
//   - stops: from when a stop was due to be sent until `TurnInterrupted` was read.
type report struct {
	Door     string  `json:"door"`
	Sessions int     `json:"sessions"`
	Rate     float64 `json:"rate"`
	Turns    int64   `json:"turns"`
	Tokens   int64   `json:"tokens"`
	Frames   int64   `json:"frames"`
	WallS    float64 `json:"wall_s"`
	CPUS     float64 `json:"driver_cpu_s"`
	Added    bars    `json:"added_us"`
	Way      bars    `json:"way_us"`
	TTFT     bars    `json:"ttft_us"`
	Late     bars    `json:"late_us"`
	Stops    bars    `json:"stops_us"`
}

func (m *measures) report(s settings, stopped *measures) report {
	return report{
		s.door, s.sessions, s.rate, m.turns, m.tokens, m.frames, m.wall.Seconds(), m.cpu.Seconds(),
		barsOf(m.added), barsOf(m.way), barsOf(m.ttft), barsOf(m.late), barsOf(stopped.stops),
	}
}

// record is what one session sees of its turns. Turns may be read at the same time.
type record struct {
	begin time.Time
	plan  []planned
	m     *measures
	over  chan struct{}

	mutex    sync.Mutex
	seen     []int
	finished int
	problem  error
}

func newRecord(begin time.Time, plan []planned, m *measures) *record {
	return &record{
		begin: begin, plan: plan, m: m, over: make(chan struct{}), seen: make([]int, len(plan)),
	}
}

// token takes in a delta of so many tokens of a turn.
func (r *record) token(turn, count int, interval time.Duration, decided, read time.Time) {
	r.mutex.Lock()
	first := r.seen[turn]
	r.seen[turn] += count
	r.mutex.Unlock()
	due := r.begin.Add(r.plan[turn].at)
	r.m.mutex.Lock()
	defer r.m.mutex.Unlock()
	for place := first; place < first+count; place++ {
		put(r.m.added, read.Sub(due.Add(time.Duration(place)*interval)))
		put(r.m.way, read.Sub(decided))
	}
	if first == 0 && count > 0 {
		put(r.m.ttft, read.Sub(due))
	}
	r.m.tokens += int64(count)
}

func (r *record) frame() {
	r.m.mutex.Lock()
	r.m.frames++
	r.m.mutex.Unlock()
}

func (r *record) interrupted(turn int, read time.Time) {
	r.m.mutex.Lock()
	defer r.m.mutex.Unlock()
	put(r.m.stops, read.Sub(r.begin.Add(r.plan[turn].stop)))
}

// finish takes in the end of a turn, which has to have said as much as it was asked to, unless it
// was stopped.
func (r *record) finish(turn int, stopped bool, tokens int) {
	r.mutex.Lock()
	defer r.mutex.Unlock()
	if wanted := r.plan[turn].stop > 0; wanted != stopped {
		r.fail(fmt.Errorf("turn %d: stopped is %t, and should be %t", turn, stopped, wanted))
	} else if !stopped && r.seen[turn] != tokens {
		r.fail(fmt.Errorf("turn %d: %d tokens came, not %d", turn, r.seen[turn], tokens))
	}
	r.finished++
	r.m.mutex.Lock()
	r.m.turns++
	r.m.mutex.Unlock()
	if r.finished == len(r.plan) && r.problem == nil {
		close(r.over)
	}
}

// broke ends it early; only the first reason counts.
func (r *record) broke(err error) {
	r.mutex.Lock()
	defer r.mutex.Unlock()
	if r.finished < len(r.plan) {
		r.fail(err)
	}
}

func (r *record) fail(err error) {
	if r.problem == nil {
		r.problem = err
		close(r.over)
	}
}

func (r *record) failure() error {
	r.mutex.Lock()
	defer r.mutex.Unlock()
	return r.problem
}

func (r *record) ended() int {
	r.mutex.Lock()
	defer r.mutex.Unlock()
	return r.finished
}
