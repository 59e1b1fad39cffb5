package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	pb "backchannel.bench/load/backchannelv1"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
)

const (
	conversationService = "/backchannel.v1.ConversationService/"
	grpcWeb             = "application/grpc-web+proto"
	// Of gRPC-Web's frames: a flag and a length.
	prefixBytes = 5
	trailers    = 0x80
	maxLine     = 1 << 20
)

// browser speaks HTTP/1.1 with Envoy, each stream on a connection of its own.
type browser struct {
	http *http.Client
	url  string
}

func newBrowser(s settings) browser {
	// What sessions say goes over connections of its own, which are kept.
	transport := &http.Transport{MaxIdleConnsPerHost: s.sessions, DisableCompression: true}
	return browser{&http.Client{Transport: transport}, "http://" + s.edge}
}

func (b browser) do(ctx context.Context, method, path, kind string, body []byte) (*http.Response, error) {
	request, err := http.NewRequestWithContext(ctx, method, b.url+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	if body != nil {
		request.Header.Set("content-type", kind)
	}
	request.Header.Set("accept", kind)
	if kind == grpcWeb {
		request.Header.Set("x-grpc-web", "1")
	}
	response, err := b.http.Do(request)
	if err != nil {
		return nil, err
	}
	if response.StatusCode != http.StatusOK {
		said, _ := io.ReadAll(io.LimitReader(response.Body, 300))
		response.Body.Close()
		return nil, fmt.Errorf("%s %s: %s: %s", method, path, response.Status, said)
	}
	return response, nil
}

// webDoor is Attach and Send over gRPC-Web.
type webDoor struct {
	users
	browser
}

type webTalk struct {
	*session
	browser
	cancel context.CancelFunc
}

func (d webDoor) open(ctx context.Context, number int) (conversation, error) {
	session, err := d.create(ctx, number)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	talk := &webTalk{session, d.browser, cancel}
	response, err := talk.call(ctx, "Attach", &pb.AttachRequest{SessionId: session.id})
	if err != nil {
		cancel()
		return nil, err
	}
	go talk.listen(response)
	return talk, <-session.opened
}

func (t *webTalk) call(ctx context.Context, method string, request proto.Message) (*http.Response, error) {
	raw, err := proto.Marshal(request)
	if err != nil {
		return nil, err
	}
	body := make([]byte, prefixBytes, prefixBytes+len(raw))
	binary.BigEndian.PutUint32(body[1:], uint32(len(raw)))
	return t.do(ctx, http.MethodPost, conversationService+method, grpcWeb, append(body, raw...))
}

// message reads the next message; io.EOF after the last.
//
// Source: https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-WEB.md
func message(from *bufio.Reader, into proto.Message) error {
	var prefix [prefixBytes]byte
	if _, err := io.ReadFull(from, prefix[:]); err != nil {
		return err
	}
	raw := make([]byte, binary.BigEndian.Uint32(prefix[1:]))
	if _, err := io.ReadFull(from, raw); err != nil {
		return err
	}
	if prefix[0]&trailers != 0 {
		if !strings.Contains(string(raw), "grpc-status:0") && !strings.Contains(string(raw), "grpc-status: 0") {
			return fmt.Errorf("the call failed: %s", raw)
		}
		return io.EOF
	}
	return proto.Unmarshal(raw, into)
}

func (t *webTalk) listen(response *http.Response) {
	defer response.Body.Close()
	body := bufio.NewReader(response.Body)
	for {
		frame := &pb.ServerFrame{}
		err := message(body, frame)
		at := time.Now()
		if err == nil {
			err = t.read(frame.Events, at)
		}
		if err != nil {
			t.ended(err)
			return
		}
	}
}

func (t *webTalk) send(ctx context.Context, frame *pb.ClientFrame) error {
	response, err := t.call(ctx, "Send", &pb.SendRequest{SessionId: t.id, Frame: frame})
	if err != nil {
		return err
	}
	defer response.Body.Close()
	body := bufio.NewReader(response.Body)
	answer := &pb.SendResponse{}
	if err := message(body, answer); err != nil {
		return fmt.Errorf("send: %w, %v", err, response.Header)
	}
	// To the end, so that the connection can be used again.
	if err := message(body, &pb.SendResponse{}); err != io.EOF {
		return fmt.Errorf("send ended %w", err)
	}
	if _, err := io.Copy(io.Discard, body); err != nil {
		return err
	}
	return t.took(answer.Receipt)
}

func (t *webTalk) say(ctx context.Context, turn int) error  { return t.send(ctx, t.ask(turn)) }
func (t *webTalk) stop(ctx context.Context, turn int) error { return t.send(ctx, t.interrupt(turn)) }

func (t *webTalk) end(ctx context.Context) error {
	t.leave()
	t.cancel()
	return t.delete(ctx)
}

// sseDoor is server-sent events down, and REST up.
type sseDoor struct {
	users
	browser
}

type sseTalk struct {
	*session
	browser
	cancel context.CancelFunc
}

func (d sseDoor) open(ctx context.Context, number int) (conversation, error) {
	session, err := d.create(ctx, number)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	response, err := d.do(ctx, http.MethodGet, "/v1/sessions/"+session.id+"/events", "text/event-stream", nil)
	if err != nil {
		cancel()
		return nil, err
	}
	talk := &sseTalk{session, d.browser, cancel}
	go talk.listen(response)
	return talk, <-session.opened
}

// sent reads server-sent events one after the other: the name and the data of each, and when it
// was whole.
func sent(from io.Reader, take func(name string, data []byte, at time.Time) error) error {
	lines := bufio.NewScanner(from)
	lines.Buffer(make([]byte, 0, 4096), maxLine)
	var name string
	var data []byte
	for lines.Scan() {
		line := lines.Bytes()
		switch {
		case len(line) == 0:
			if data != nil {
				if err := take(name, data, time.Now()); err != nil {
					return err
				}
			}
			name, data = "", nil
		case bytes.HasPrefix(line, []byte("event: ")):
			name = string(line[len("event: "):])
		case bytes.HasPrefix(line, []byte("data: ")):
			data = append([]byte{}, line[len("data: "):]...)
		}
	}
	if err := lines.Err(); err != nil {
		return err
	}
	return io.EOF
}

func (t *sseTalk) listen(response *http.Response) {
	defer response.Body.Close()
	t.ended(sent(response.Body, func(name string, data []byte, at time.Time) error {
		if name == "heartbeat" {
			return nil
		}
		event := &pb.Event{}
		if err := protojson.Unmarshal(data, event); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		return t.read([]*pb.Event{event}, at)
	}))
}

func (t *sseTalk) send(ctx context.Context, frame *pb.ClientFrame) error {
	raw, err := protojson.Marshal(frame)
	if err != nil {
		return err
	}
	response, err := t.do(ctx, http.MethodPost, "/v1/sessions/"+t.id+"/frames", "application/json", raw)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	raw, err = io.ReadAll(response.Body)
	if err != nil {
		return err
	}
	answer := &pb.SendResponse{}
	if err := protojson.Unmarshal(raw, answer); err != nil {
		return err
	}
	return t.took(answer.Receipt)
}

func (t *sseTalk) say(ctx context.Context, turn int) error  { return t.send(ctx, t.ask(turn)) }
func (t *sseTalk) stop(ctx context.Context, turn int) error { return t.send(ctx, t.interrupt(turn)) }

func (t *sseTalk) end(ctx context.Context) error {
	t.leave()
	t.cancel()
	return t.delete(ctx)
}
