// A client in another language than the server's, made from proto/ alone: it holds a conversation
// over one Converse, stops an answer in the middle, answers a tool call, and prints what it saw.
//
//	client ADDRESS
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log"
	"os"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	pb "backchannel.test/client/backchannelv1"
)

// What it saw, for the test to judge.
type report struct {
	Seqs        []uint64          `json:"seqs"`
	Kinds       []string          `json:"kinds"`
	Receipts    map[string]string `json:"receipts"`
	Displayed   string            `json:"displayed"`
	KeptChars   uint32            `json:"kept_chars"`
	Dropped     uint32            `json:"dropped_chars"`
	Endings     []string          `json:"endings"`
	Arguments   string            `json:"arguments"`
	Text        []string          `json:"text"`
	Generated   []uint32          `json:"generated"`
	Accounted   []uint32          `json:"accounted"`
	EndedPolite bool              `json:"ended_politely"`
}

type conversation struct {
	stream pb.ConversationService_ConverseClient
	sent   int
	queue  []*pb.Event
	saw    *report
}

func (c *conversation) send(frame *pb.ClientFrame) {
	c.sent++
	frame.FrameId = fmt.Sprintf("go-%d", c.sent)
	if err := c.stream.Send(frame); err != nil {
		log.Fatalf("send: %v", err)
	}
}

func (c *conversation) say(text string) {
	part := &pb.Part{Content: &pb.Part_Text{Text: text}}
	message := &pb.UserMessage{Parts: []*pb.Part{part}}
	c.send(&pb.ClientFrame{Frame: &pb.ClientFrame_Message{Message: message}})
}

// next gives the next event, and notes receipts on the way. It is nil at the end of the stream.
func (c *conversation) next() *pb.Event {
	for len(c.queue) == 0 {
		frame, err := c.stream.Recv()
		if err != nil {
			c.saw.EndedPolite = err.Error() == "EOF"
			return nil
		}
		if receipt := frame.Receipt; receipt != nil {
			c.saw.Receipts[receipt.FrameId] = receipt.Status.String()
		}
		c.queue = frame.Events
	}
	event := c.queue[0]
	c.queue = c.queue[1:]
	c.saw.Seqs = append(c.saw.Seqs, event.Seq)
	kind := strings.TrimPrefix(fmt.Sprintf("%T", event.Kind), "*backchannelv1.Event_")
	c.saw.Kinds = append(c.saw.Kinds, kind)
	return event
}

// finish reads to the end of the turn and returns the text that came.
func (c *conversation) finish() string {
	var text strings.Builder
	for {
		event := c.next()
		if event == nil {
			log.Fatal("the stream ended before its turn: cut, not finished")
		}
		switch kind := event.Kind.(type) {
		case *pb.Event_OutputDelta:
			text.WriteString(kind.OutputDelta.Text)
		case *pb.Event_TurnInterrupted:
			c.saw.KeptChars = kind.TurnInterrupted.KeptChars
			c.saw.Dropped = kind.TurnInterrupted.DroppedChars
		case *pb.Event_ToolCallReady:
			c.saw.Arguments = kind.ToolCallReady.ArgumentsJson
			c.send(&pb.ClientFrame{Frame: &pb.ClientFrame_ToolResult{ToolResult: &pb.ToolResult{
				CallId:  kind.ToolCallReady.CallId,
				Outcome: &pb.ToolResult_Json{Json: `{"answer": 42}`},
			}}})
		case *pb.Event_TurnFinished:
			usage := kind.TurnFinished.Usage
			c.saw.Endings = append(c.saw.Endings, kind.TurnFinished.FinishReason.String())
			c.saw.Generated = append(c.saw.Generated, usage.GeneratedTokens)
			c.saw.Accounted = append(c.saw.Accounted, usage.DeliveredTokens+usage.WastedTokens)
			return text.String()
		}
	}
}

// interrupt starts an answer and stops it when five deltas have come, three of them displayed.
func (c *conversation) interrupt() {
	c.say("count, please")
	var turn string
	var displayed strings.Builder
	for deltas := 0; deltas < 5; {
		event := c.next()
		if event == nil {
			log.Fatal("the stream ended before its turn: cut, not finished")
		}
		delta := event.GetOutputDelta()
		if delta == nil {
			continue
		}
		turn = delta.TurnId
		if deltas < 3 {
			displayed.WriteString(delta.Text)
		}
		deltas++
	}
	c.saw.Displayed = displayed.String()
	shown := uint32(len([]rune(c.saw.Displayed)))
	c.send(&pb.ClientFrame{Frame: &pb.ClientFrame_Interrupt{Interrupt: &pb.Interrupt{
		TurnId:          turn,
		DisplayedOffset: &shown,
	}}})
	c.saw.Text = append(c.saw.Text, c.finish())
}

func converse(client pb.ConversationServiceClient, config *pb.SessionConfig,
	talk func(*conversation)) report {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	stream, err := client.Converse(ctx)
	if err != nil {
		log.Fatalf("converse: %v", err)
	}
	c := &conversation{stream: stream, saw: &report{Receipts: map[string]string{}}}
	c.send(&pb.ClientFrame{Frame: &pb.ClientFrame_Open{
		Open: &pb.Open{Start: &pb.Open_Create{Create: config}},
	}})
	talk(c)
	c.send(&pb.ClientFrame{Frame: &pb.ClientFrame_Close{Close: &pb.Close{}}})
	for c.next() != nil {
	}
	return *c.saw
}

func main() {
	if len(os.Args) != 2 {
		log.Fatal("usage: client ADDRESS")
	}
	credentials := grpc.WithTransportCredentials(insecure.NewCredentials())
	connection, err := grpc.NewClient(os.Args[1], credentials)
	if err != nil {
		log.Fatalf("connect: %v", err)
	}
	defer connection.Close()
	client := pb.NewConversationServiceClient(connection)

	slowly := map[string]string{"rate": "50"}
	count := &pb.SessionConfig{Model: "scripted/count", EngineOptions: slowly}
	schema := `{"type": "object", "properties": {"input": {"type": "string"}}}`
	tool := &pb.ToolSpec{Name: "oracle", ParametersJsonSchema: schema}
	ask := &pb.SessionConfig{Model: "scripted/tool", Tools: []*pb.ToolSpec{tool}}
	reports := map[string]report{
		"interrupt": converse(client, count, (*conversation).interrupt),
		"tool": converse(client, ask, func(c *conversation) {
			c.say("the question")
			c.saw.Text = append(c.saw.Text, c.finish())
		}),
	}
	if err := json.NewEncoder(os.Stdout).Encode(reports); err != nil {
		log.Fatal(err)
	}
}
