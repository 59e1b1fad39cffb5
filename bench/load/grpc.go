package main

import (
	"context"
	"time"

	pb "backchannel.bench/load/backchannelv1"
)

// grpcDoor is Converse, the full duplex.
type grpcDoor struct{ users }

type duplex struct {
	*session
	stream pb.ConversationService_ConverseClient
	cancel context.CancelFunc
}

func (d grpcDoor) open(ctx context.Context, number int) (conversation, error) {
	session, err := d.create(ctx, number)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	stream, err := session.client.Converse(ctx)
	if err != nil {
		cancel()
		return nil, err
	}
	resume := &pb.Resume{SessionId: session.id}
	open := &pb.ClientFrame{Frame: &pb.ClientFrame_Open{
		Open: &pb.Open{Start: &pb.Open_Resume{Resume: resume}},
	}}
	if err := stream.Send(open); err != nil {
		cancel()
		return nil, err
	}
	talk := &duplex{session, stream, cancel}
	go talk.listen()
	return talk, <-session.opened
}

func (t *duplex) listen() {
	for {
		frame, err := t.stream.Recv()
		at := time.Now()
		if err == nil && frame.Receipt != nil {
			err = t.took(frame.Receipt)
		}
		if err == nil {
			err = t.read(frame.Events, at)
		}
		if err != nil {
			t.ended(err)
			return
		}
	}
}

func (t *duplex) say(_ context.Context, turn int) error  { return t.stream.Send(t.ask(turn)) }
func (t *duplex) stop(_ context.Context, turn int) error { return t.stream.Send(t.interrupt(turn)) }

func (t *duplex) end(ctx context.Context) error {
	t.leave()
	t.cancel()
	return t.delete(ctx)
}
