package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	pb "backchannel.bench/load/backchannelv1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// conversation is one session as its user has it.
type conversation interface {
	// begin has what is read noted from now on.
	begin(*record)
	// say asks a turn, by its number in the plan.
	say(context.Context, int) error
	// stop stops it.
	stop(context.Context, int) error
	// end leaves, and has the session deleted.
	end(context.Context) error
}

// door opens conversations.
type door interface {
	open(ctx context.Context, number int) (conversation, error)
}

func openDoor(s settings) (door, error) {
	connections, err := dial(s)
	if err != nil {
		return nil, err
	}
	users := users{s, connections}
	switch s.door {
	case "grpc":
		return grpcDoor{users}, nil
	case "web":
		return webDoor{users, newBrowser(s)}, nil
	case "sse":
		return sseDoor{users, newBrowser(s)}, nil
	case "bare-grpc":
		return bareGrpcDoor{users}, nil
	case "bare-sse":
		return bareSseDoor{s, newBrowser(s)}, nil
	}
	return nil, fmt.Errorf("no door is called %q", s.door)
}

// Sessions that are opened, or deleted, at the same time.
const sideBySide = 16

// each does something for every session, some at the same time.
func each(sessions int, do func(number int) error) error {
	failures := make([]error, sessions)
	var workers sync.WaitGroup
	room := make(chan struct{}, sideBySide)
	for number := range sessions {
		workers.Add(1)
		room <- struct{}{}
		go func() {
			defer workers.Done()
			failures[number] = do(number)
			<-room
		}()
	}
	workers.Wait()
	return errors.Join(failures...)
}

func openAll(ctx context.Context, door door, s settings) ([]conversation, error) {
	talks := make([]conversation, s.sessions)
	return talks, each(s.sessions, func(number int) (err error) {
		talks[number], err = door.open(ctx, number)
		return err
	})
}

func dial(s settings) ([]*grpc.ClientConn, error) {
	var connections []*grpc.ClientConn
	for range s.connections {
		connection, err := grpc.NewClient(
			"passthrough:///"+s.server, grpc.WithTransportCredentials(insecure.NewCredentials()),
		)
		if err != nil {
			return nil, err
		}
		connections = append(connections, connection)
	}
	return connections, nil
}

// users creates sessions, over gRPC whatever the door is.
type users struct {
	settings
	connections []*grpc.ClientConn
}

func (u users) connection(number int) *grpc.ClientConn {
	return u.connections[number%len(u.connections)]
}

func (u users) create(ctx context.Context, number int) (*session, error) {
	client := pb.NewConversationServiceClient(u.connection(number))
	tokens := uint32(u.tokens)
	created, err := client.CreateSession(ctx, &pb.CreateSessionRequest{Config: &pb.SessionConfig{
		Model:         "scripted/count",
		EngineOptions: map[string]string{"rate": fmt.Sprint(u.rate)},
		Sampling:      &pb.Sampling{MaxTokens: &tokens},
	}})
	if err != nil {
		return nil, fmt.Errorf("create: %w", err)
	}
	return &session{
		settings: u.settings, client: client, id: created.Session.SessionId,
		turns: map[string]int{}, opened: make(chan error, 1),
	}, nil
}

// session is what all doors to the service have in common: events, and what they mean.
type session struct {
	settings
	client pb.ConversationServiceClient
	id     string
	opened chan error

	mutex  sync.Mutex
	asked  int
	first  int
	record *record
	turns  map[string]int
	seq    uint64
	gone   bool
}

func (s *session) begin(record *record) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	s.record, s.first = record, s.asked
}

// ask makes the message of a turn; with `stop` one that has more to say than there is time for.
func (s *session) ask(turn int) *pb.ClientFrame {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	s.asked = s.first + turn + 1
	message := &pb.UserMessage{
		Parts: []*pb.Part{{Content: &pb.Part_Text{Text: "count"}}},
	}
	if s.record.plan[turn].stop > 0 {
		many := uint32(time.Hour.Seconds() * s.rate)
		message.Sampling = &pb.Sampling{MaxTokens: &many}
	}
	return &pb.ClientFrame{
		FrameId: s.frameID(turn), Frame: &pb.ClientFrame_Message{Message: message},
	}
}

func (s *session) frameID(turn int) string { return fmt.Sprintf("turn-%d", s.first+turn) }

func (s *session) interrupt(turn int) *pb.ClientFrame {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	return &pb.ClientFrame{
		FrameId: "stop-" + s.frameID(turn),
		Frame: &pb.ClientFrame_Interrupt{
			Interrupt: &pb.Interrupt{TargetFrameId: s.frameID(turn)},
		},
	}
}

// took checks what became of a frame.
func (s *session) took(receipt *pb.Receipt) error {
	if receipt.Status != pb.ReceiptStatus_RECEIPT_STATUS_ACCEPTED {
		return fmt.Errorf("%s was %s: %s", receipt.FrameId, receipt.Status, receipt.Error.GetMessage())
	}
	return nil
}

// read takes in the events of one frame.
func (s *session) read(events []*pb.Event, at time.Time) error {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	hasTokens := false
	for _, event := range events {
		if event.Seq != s.seq+1 {
			return fmt.Errorf("event %d came after %d", event.Seq, s.seq)
		}
		s.seq = event.Seq
		switch kind := event.Kind.(type) {
		case *pb.Event_SessionOpened:
			s.opened <- nil
		case *pb.Event_TurnStarted:
			var number int
			if _, err := fmt.Sscanf(kind.TurnStarted.FrameId, "turn-%d", &number); err != nil {
				return fmt.Errorf("a turn for %q started", kind.TurnStarted.FrameId)
			}
			s.turns[kind.TurnStarted.TurnId] = number - s.first
		case *pb.Event_OutputDelta:
			hasTokens = true
			interval := time.Duration(float64(time.Second) / s.rate)
			delta := kind.OutputDelta
			s.record.token(
				s.turns[delta.TurnId], int(delta.TokenCount), interval, event.Time.AsTime(), at,
			)
		case *pb.Event_TurnInterrupted:
			s.record.interrupted(s.turns[kind.TurnInterrupted.TurnId], at)
		case *pb.Event_InputWithdrawn:
			return fmt.Errorf("%s was stopped before it started", kind.InputWithdrawn.FrameId)
		case *pb.Event_TurnFinished:
			end := kind.TurnFinished
			stopped := end.FinishReason == pb.FinishReason_FINISH_REASON_INTERRUPTED
			if !stopped && end.FinishReason != pb.FinishReason_FINISH_REASON_LENGTH &&
				end.FinishReason != pb.FinishReason_FINISH_REASON_STOP {
				return fmt.Errorf("a turn ended %s: %s", end.FinishReason, end.Error.GetMessage())
			}
			s.record.finish(s.turns[end.TurnId], stopped, s.tokens)
			delete(s.turns, end.TurnId)
		}
	}
	if hasTokens {
		s.record.frame()
	}
	return nil
}

// ended takes in why there is nothing more to read.
func (s *session) ended(err error) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	if s.gone {
		return
	}
	if errors.Is(err, io.EOF) {
		err = errors.New("the stream ended, which nobody asked for")
	}
	if s.record != nil {
		s.record.broke(err)
	}
	select {
	case s.opened <- err:
	default:
	}
}

func (s *session) leave() {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	s.gone = true
}

func (s *session) delete(ctx context.Context) error {
	_, err := s.client.DeleteSession(ctx, &pb.DeleteSessionRequest{SessionId: s.id})
	return err
}
