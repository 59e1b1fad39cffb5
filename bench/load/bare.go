package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"

	pb "backchannel.bench/load/backchannelv1"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
)

// A bare server knows no sessions: each turn is a call that takes a rate and a count.

type bareTalk struct {
	settings
	call   func(ctx context.Context, take func(events []*pb.Event, at time.Time)) error
	mutex  sync.Mutex
	record *record
}

func (t *bareTalk) begin(record *record) {
	t.mutex.Lock()
	defer t.mutex.Unlock()
	t.record = record
}

func (t *bareTalk) say(ctx context.Context, turn int) error {
	record := t.record
	interval := time.Duration(float64(time.Second) / t.rate)
	go func() {
		err := t.call(ctx, func(events []*pb.Event, at time.Time) {
			for _, event := range events {
				count := int(event.GetOutputDelta().GetTokenCount())
				record.token(turn, count, interval, event.Time.AsTime(), at)
			}
			record.frame()
		})
		if err != nil && !errors.Is(err, io.EOF) {
			record.broke(err)
			return
		}
		record.finish(turn, false, t.tokens)
	}()
	return nil
}

func (t *bareTalk) stop(context.Context, int) error {
	return errors.New("a bare server cannot tell that it has stopped")
}

func (t *bareTalk) end(context.Context) error { return nil }

type bareGrpcDoor struct{ users }

// What bench/bare.py serves.
const bareMethod = "/bench.Bare/Stream"

// plain passes bytes through.
type plain struct{}

func (plain) Name() string { return "plain" }

func (plain) Marshal(value any) ([]byte, error) {
	raw, ok := value.(*[]byte)
	if !ok {
		return nil, fmt.Errorf("%T is not bytes", value)
	}
	return *raw, nil
}

func (plain) Unmarshal(raw []byte, value any) error {
	into, ok := value.(*[]byte)
	if !ok {
		return fmt.Errorf("%T is not bytes", value)
	}
	*into = append([]byte{}, raw...)
	return nil
}

func (d bareGrpcDoor) open(_ context.Context, number int) (conversation, error) {
	connection := d.connection(number)
	return &bareTalk{settings: d.settings, call: func(
		ctx context.Context, take func([]*pb.Event, time.Time),
	) error {
		description := &grpc.StreamDesc{ServerStreams: true}
		stream, err := connection.NewStream(ctx, description, bareMethod, grpc.ForceCodec(plain{}))
		if err != nil {
			return err
		}
		request := fmt.Appendf(nil, "%g %d", d.rate, d.tokens)
		if err := stream.SendMsg(&request); err != nil {
			return err
		}
		if err := stream.CloseSend(); err != nil {
			return err
		}
		for {
			var raw []byte
			if err := stream.RecvMsg(&raw); err != nil {
				return err
			}
			at := time.Now()
			frame := &pb.ServerFrame{}
			if err := proto.Unmarshal(raw, frame); err != nil {
				return err
			}
			take(frame.Events, at)
		}
	}}, nil
}

type bareSseDoor struct {
	settings
	browser
}

func (d bareSseDoor) open(context.Context, int) (conversation, error) {
	// There is no Envoy in front of it.
	server := browser{d.http, "http://" + d.server}
	path := fmt.Sprintf("/?rate=%g&tokens=%d", d.rate, d.tokens)
	return &bareTalk{settings: d.settings, call: func(
		ctx context.Context, take func([]*pb.Event, time.Time),
	) error {
		response, err := server.do(ctx, http.MethodGet, path, "text/event-stream", nil)
		if err != nil {
			return err
		}
		defer response.Body.Close()
		return sent(response.Body, func(_ string, data []byte, at time.Time) error {
			event := &pb.Event{}
			if err := protojson.Unmarshal(data, event); err != nil {
				return err
			}
			take([]*pb.Event{event}, at)
			return nil
		})
	}}, nil
}
