"""What the house model knows about Backchannel: one `Topic` a subject, each fact in our own words.

An answer is one of four texts. `short` is one sentence; `text` is the usual answer; `more` goes
deeper and follows `text`; `why` gives the reason. Questions are made in `phrases.py` from `names`
(noun phrases) and taken from `asks` (whole questions). `unseen` is never trained on: evaluate.py
asks it.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Topic:
    """One subject and all that is said about it."""

    key: str
    names: tuple[str, ...]
    asks: tuple[str, ...]
    unseen: tuple[str, ...]
    short: str
    text: str
    more: str
    why: str

    @property
    def long(self) -> str:
        """The answer to whoever wants it in detail."""
        return f"{self.text} {self.more}"


def _topic(key: str, names: str, asks: str, unseen: str, short: str, text: str, more: str, why: str) -> Topic:
    def split(line: str) -> tuple[str, ...]:
        return tuple(part.strip() for part in line.split("|"))

    return Topic(key, split(names), split(asks), split(unseen), short, text, more, why)


TOPICS: tuple[Topic, ...] = (
    _topic(
        "backchannel",
        "Backchannel | this project | this service | this server",
        "what is Backchannel? | what is this? | what does Backchannel do? | what is Backchannel for? "
        "| what can I do with Backchannel? | where am I? | what is this project about?",
        "what is the purpose of Backchannel? | so what does this thing do?",
        "Backchannel is a gRPC service that holds conversations with language models.",
        "Backchannel is a gRPC service for conversations with language models. Both sides can talk "
        "at any time: you can interrupt an answer, answer a tool call, and come back after a cut.",
        "Every conversation is a session, and every session is a numbered log of events. Whatever is "
        "durable is an event: what you said, what the model said, each tool call and each interrupt. "
        "Clients read that log from any place in it, so nothing is lost when a connection breaks.",
        "Because a chat over a plain response stream cannot be interrupted cleanly and is lost when "
        "the connection breaks.",
    ),
    _topic(
        "session",
        "a session | sessions | the session",
        "what is a session? | how is a conversation stored? | what is a conversation here? "
        "| what does a session consist of? | how do sessions work?",
        "what exactly is meant by a session? | how would you define a session?",
        "A session is one conversation, kept as a numbered log of events.",
        "A session is one conversation. It is an append-only log of events, numbered from 1, and its "
        "state is nothing but the sum of those events.",
        "A session outlives its connections: you can leave, come back, and read on from any event. "
        "Several readers may follow the same session at once. It expires after 7 idle days, or when "
        "somebody deletes it.",
        "Because a log can be read again from any place, and a stream that is gone cannot.",
    ),
    _topic(
        "event",
        "an event | events | the event log",
        "what is an event? | what kinds of events are there? | what is in the log? "
        "| which events exist? | what does an event contain?",
        "which sorts of events can I receive? | what do events look like?",
        "An event is one durable, numbered fact of a session.",
        "An event is one durable fact with a number: a message was accepted, a turn started, some "
        "text came out, a tool call finished. Events are only ever appended.",
        "Some kinds are SessionOpened, InputAccepted, TurnStarted, OutputDelta, ToolCallReady, "
        "ToolCallFinished, TurnInterrupted and TurnFinished. Each event carries its seq, a time, and "
        "the id of the client frame that caused it, if one did.",
        "Because facts that are only added can be replayed in the same order by everybody.",
    ),
    _topic(
        "seq",
        "seq | seq numbers | sequence numbers | the numbering of events",
        "what is seq? | what is a sequence number? | how are events numbered? "
        "| are there gaps in the numbers? | where does the numbering start?",
        "do event numbers ever repeat? | with which number does a log begin?",
        "Every event has a seq; it starts at 1 and has no gaps.",
        "Every event of a session has a number, its seq. The numbers start at 1 and are ordered, "
        "unique and without gaps.",
        "A reader remembers the last seq that it saw, and that is its whole cursor. When it comes "
        "back it names that number and gets the next event first. Control messages have no number "
        "and never move the cursor.",
        "Because with one number a reader can say exactly how far it got.",
    ),
    _topic(
        "converse",
        "Converse | the Converse call | the Converse RPC | the bidi stream",
        "what is Converse? | how do I talk to the server? | which RPC is full duplex? "
        "| how does Converse work? | what do I send first on Converse?",
        "what is the Converse method good for? | how does one use Converse?",
        "Converse is the bidirectional gRPC call that carries a whole conversation.",
        "Converse is the full duplex call. You send client frames and read server frames on one "
        "stream, both at any time. The first frame must be Open, with a new configuration or with a "
        "session to resume.",
        "After Open you may send messages, tool results, interrupts, acks and pings. The server "
        "sends events, and a receipt for every frame that has a frame id. The turn does not belong "
        "to the call: if the stream breaks, the session goes on.",
        "Because an interrupt must be able to travel up while the answer is travelling down.",
    ),
    _topic(
        "resume",
        "resuming | resume | after_seq | reconnecting",
        "how do I resume a session? | what is after_seq? | how do I reconnect? "
        "| what happens when my connection breaks? | can I come back later? "
        "| how do I continue after a cut? | do I lose events when the network fails?",
        "my wifi died, is my chat lost? | how can I pick up a conversation where it was?",
        "Open with Resume and after_seq, and you get the next event first.",
        "To resume, open with the session id and after_seq, the last number you saw. The server then "
        "sends the event after it first, so nothing is lost and nothing comes twice.",
        "This also works in the middle of an answer or of a tool call, and after the server was "
        "restarted with the SQLite log. If your cursor is too old, you get OUT_OF_RANGE with the "
        "earliest seq, or a snapshot if you asked for one.",
        "Because connections break, and a conversation should not.",
    ),
    _topic(
        "interrupt",
        "interrupts | an interrupt | interrupting | interruptions | the Interrupt frame",
        "how do I interrupt an answer? | what does an interrupt do? | how do I stop an answer? "
        "| can I stop you? | what happens when I interrupt? | how fast is a stop?",
        "is it possible to cut you off in the middle? | what happens to the text when I stop it?",
        "An interrupt stops the running turn and keeps what you had seen.",
        "An interrupt stops the running turn. The stop reaches the engine and not just the socket, "
        "and by default the context keeps exactly what had been displayed to you.",
        "The frame names its turn, so a stop that comes too late cannot hurt the next turn: it is "
        "answered as stale. The log gets a TurnInterrupted event with the kept and dropped "
        "characters, and then one TurnFinished. You can also send a message that interrupts.",
        "Because the model should remember what you have read, and not what you never saw.",
    ),
    _topic(
        "keep",
        "keep | KEEP_DISPLAYED | KEEP_GENERATED | KEEP_NOTHING | the keep setting",
        "what does keep mean? | what is kept after an interrupt? | how much text is kept? "
        "| can I roll a turn back? | what is KEEP_NOTHING?",
        "which part of a stopped answer survives? | what are the choices for keep?",
        "Keep says how much of an interrupted answer stays in the context.",
        "Keep says what stays of an interrupted answer. KEEP_DISPLAYED keeps what you had seen and "
        "is the default, KEEP_GENERATED keeps all that was made, and KEEP_NOTHING rolls the turn "
        "back.",
        "Your own message stays in every case, and so does a ready tool call with its result. The "
        "kept text is cut at the character and closed as an ordinary message, without any marker. "
        "If nothing was displayed yet, nothing is kept.",
        "Because only the client knows what its user has really seen.",
    ),
    _topic(
        "ack",
        "Ack | acks | displayed_seq | the displayed position",
        "what is an Ack? | what is displayed_seq? | how does the server know what I have seen? "
        "| why should I send acks? | what is the displayed position?",
        "how can a client report what was shown? | what is the use of acks?",
        "An Ack tells the server how far its user has really read.",
        "An Ack tells the server what the user has seen, as displayed_seq. When a turn is "
        "interrupted, the text is cut at that position.",
        "The position is the furthest of all acks and of the frame's own displayed_seq. An offset in "
        "characters may be given too, for readers that show text in the middle of a delta. A "
        "position beyond the end is refused with OUT_OF_RANGE.",
        "Because what was sent is not the same as what was seen.",
    ),
    _topic(
        "truncation",
        "TurnTruncated | truncation | a late stop",
        "what is TurnTruncated? | what if I stop after the answer has ended? "
        "| what happens when the engine is faster than the reader? | can a finished turn be cut?",
        "the answer was done before I stopped it, what now? | what does a late stop do?",
        "TurnTruncated says that a finished turn was cut back to what had been displayed.",
        "If the engine was faster than the reader, a stop can come after the turn has ended. Then "
        "the turn is cut back to what was displayed, and a TurnTruncated event says so.",
        "It holds for the last turn only, while no later turn has started, and when the stop names a "
        "displayed position short of the end. There is no second TurnFinished. The next answer is "
        "made from the shortened text.",
        "Because the user stopped at what was on the screen, however fast the engine was.",
    ),
    _topic(
        "tools",
        "tools | tool calls | function calling | a tool call",
        "how do tool calls work? | what is a tool? | how do I declare a tool? | who runs the tools? "
        "| can you call functions? | how do I answer a tool call?",
        "where is a tool executed? | how can I give the model a function to call?",
        "The model asks for a tool, your client runs it and sends the result back.",
        "You declare tools when you open the session. When the model wants one you get a "
        "ToolCallReady event with its arguments, your client runs it, and you send a ToolResult back.",
        "The arguments are streamed while they are made. Several calls may be open in one round, and "
        "each of them ends exactly once: completed, failed, timed out, cancelled or unknown. Open "
        "calls outlive the connection, so another one may bring the result.",
        "Because the tool belongs to your side, with your data and your permissions.",
    ),
    _topic(
        "deadlines",
        "deadlines | tool deadlines | timeouts | tool timeouts | the idle deadline",
        "how long may a tool take? | what happens when a tool is too slow? "
        "| what are the deadlines? | what is the idle timeout? | how do I keep a slow tool alive?",
        "my tool needs minutes, is that all right? | when does a tool call time out?",
        "A tool has 60 seconds without a sign of life and 300 seconds in all, unless you say otherwise.",
        "The server owns two deadlines for each tool call: an idle one of 60 seconds and an absolute "
        "one of 300 seconds, by default. When one passes, the call ends as timed out, the model is "
        "told so, and the turn goes on.",
        "ToolProgress resets the idle deadline. Both can be set for each tool when it is declared. A "
        "deadline that passes while the server is down fires a few seconds after it is back.",
        "Because a tool that never answers must not hang a conversation for ever.",
    ),
    _topic(
        "late",
        "late results | a late result | late tool results",
        "what happens to a late result? | what if a tool answers after its deadline? "
        "| are late results dropped? | can I still send a result after the timeout?",
        "my tool came back too late, is its result lost? | is a late answer of a tool ignored?",
        "A late result is stored and marked as late, never dropped.",
        "A result that comes after its call has ended is stored with late = true. It is never "
        "dropped, but it does not replace the one result that the model was given.",
        "At most 4 late results are taken for a call, and their size is bounded. In the log each is "
        "one more ToolCallFinished event.",
        "Because the tool may have done something real, and the log should say so.",
    ),
    _topic(
        "receipts",
        "receipts | a receipt | receipt statuses",
        "what is a receipt? | how do I know that my message arrived? "
        "| what does RECEIPT_STATUS_STALE mean? | what statuses can a receipt have? "
        "| is my frame acknowledged?",
        "how can I be sure the server took my frame? | what is in a receipt?",
        "A receipt answers a client frame: accepted, duplicate, stale or rejected.",
        "Every client frame with a frame id gets one receipt. Its status is accepted, duplicate, "
        "stale or rejected, and it names the seq of the event that the frame caused.",
        "A bad frame is refused with a receipt and the stream goes on. Only a broken protocol ends "
        "the stream, such as a second Open. A rejected frame is not remembered, so it may be mended "
        "and sent again.",
        "Because a client that does not know whether a message arrived cannot safely send it again.",
    ),
    _topic(
        "frame_id",
        "frame ids | a frame_id | exactly-once input | deduplication",
        "what is a frame_id? | what happens if I send a message twice? | how does exactly once work? "
        "| can I safely retry? | are duplicates detected?",
        "is it safe to resend a frame? | how are repeated messages handled?",
        "The same frame_id with the same content is applied once.",
        "A frame_id makes input exactly once. The same id with the same content is applied once and "
        "gets the same receipt again; the same id with other content is refused.",
        "This also holds after a crash, because the id and a digest of the frame are in the log. The "
        "id may have up to 128 bytes and counts within its session. An empty id means no "
        "deduplication.",
        "Because after a cut a client cannot know whether its last frame arrived, so it must be free to repeat it.",
    ),
    _topic(
        "heartbeat",
        "heartbeats | a heartbeat | the Heartbeat message",
        "what is a heartbeat? | how often do heartbeats come? | how do I know the stream is alive? "
        "| what does the seq in a heartbeat mean?",
        "what comes on a quiet stream? | does the server send keepalives?",
        "A heartbeat comes at least every 15 seconds on an idle stream.",
        "A heartbeat is sent at least every 15 seconds on an idle stream. Its seq says that every "
        "event up to that number has been delivered on this stream.",
        "A fresh stream with nothing else to say gets one at once. A Ping asks for one now. "
        "Heartbeats have no number of their own and never move the cursor ahead.",
        "Because silence alone cannot tell an idle stream from a dead one.",
    ),
    _topic(
        "drain",
        "GoAway | draining | shutdown | SIGTERM",
        "what is GoAway? | what happens on shutdown? | how does the server stop? "
        "| what happens on SIGTERM? | what is draining?",
        "what if the server has to go down while I chat? | how do I stop the server gently?",
        "GoAway asks the client to reconnect elsewhere; nothing is lost.",
        "On SIGTERM the server drains: health says NOT_SERVING, every stream gets a GoAway with the "
        "time left, and running turns may finish within the grace time.",
        "What still runs after that is left to be resumed, if the log survives. Streams end with "
        "UNAVAILABLE and a hint when to retry, and the process ends with status 0.",
        "Because a new version should be able to take over without anybody losing an answer.",
    ),
    _topic(
        "doors",
        "the doors | doors | ways to connect",
        "how can I connect? | which protocols do you speak? | what doors are there? "
        "| can I use HTTP? | what ways are there to reach the server?",
        "which transports can I choose from? | how may a client reach you?",
        "The doors are gRPC, gRPC-Web and SSE; all show the same log.",
        "There are several doors to the same log: gRPC for programs, and gRPC-Web and server-sent "
        "events for browsers, which come in through Envoy.",
        "All of them decode to the same events with the same numbers, so a client can leave by one "
        "door and come back by another. What can be done on one can be done on the others.",
        "Because a conversation should not depend on how somebody reaches it.",
    ),
    _topic(
        "browser",
        "browsers | gRPC-Web | the browser door",
        "can I use it from a browser? | what is gRPC-Web? | how do browsers connect? "
        "| does it work in a web page? | how does a web client send messages?",
        "I write a web page, what do I use? | is there a way in for JavaScript?",
        "Browsers use Attach and Send over gRPC-Web, through Envoy.",
        "Browsers cannot stream upward, so they use the split half: Attach is the stream down and "
        "Send is one frame up. Both travel as gRPC-Web through Envoy.",
        "Attach and Send take the same frames and give the same receipts as Converse, so a browser "
        "has no lesser door. Server-sent events are there too.",
        "Because browsers have no client streaming.",
    ),
    _topic(
        "sse",
        "SSE | server-sent events | EventSource | the event stream over HTTP",
        "what is SSE? | can I use EventSource? | how do server-sent events work here? "
        "| how do I read events over HTTP?",
        "is there a plain HTTP stream? | how can curl read the events?",
        "Over SSE each event has its seq as id and its kind as event name.",
        "With server-sent events you read a session over plain HTTP, through Envoy. The id is the "
        "seq, the event name is the kind, and the data is the event as JSON.",
        "A browser that reconnects sends Last-Event-ID and goes on after that event. Heartbeats come "
        "as events without an id. The path is /v1/sessions, the session id, and /events.",
        "Because every browser can read it without any library.",
    ),
    _topic(
        "envoy",
        "Envoy | the proxy | the HTTP server",
        "what is Envoy? | what does Envoy do here? | do I need Envoy? | which HTTP server is used?",
        "what role does Envoy play? | is there a proxy in front?",
        "Envoy is the proxy in front that turns HTTP into gRPC.",
        "Envoy is the only HTTP server there is. It stands in front and turns gRPC-Web, JSON and "
        "server-sent events into gRPC calls to Backchannel.",
        "It listens on port 8080 by default. For programs that speak gRPC you do not need it: they "
        "connect to port 50051 directly.",
        "Because a good proxy exists already, and writing another HTTP server would be waste.",
    ),
    _topic(
        "engines",
        "engines | an engine | model engines | the engine",
        "what is an engine? | which engines are there? | where do the tokens come from? "
        "| can I use my own model? | how do I add a model?",
        "which backends can generate text? | what produces the answers?",
        "An engine makes the tokens; llama and scripted are built in.",
        "An engine is where tokens come from. The llama engine runs any GGUF file in the process, "
        "and the scripted engine plays fixed answers for tests. Others can be added.",
        "A model is named as engine/name, such as llama/house or scripted/echo. An engine takes the "
        "messages and tools, gives chunks of text and tool calls, and stops computing when told to.",
        "Because the conversation should not care who computes the words.",
    ),
    _topic(
        "scripted",
        "the scripted engine | scripted | scripted/echo | scripted/count | scripted models",
        "what is the scripted engine? | what is scripted/echo? | what is scripted/count for? "
        "| how do I test without a model? | which scripted models exist?",
        "is there a fake model for tests? | what can I use to test my client?",
        "The scripted engine plays fixed answers and is meant for tests.",
        "The scripted engine has no model: it plays a script, so that clients can be tested. Its "
        "models are echo, count, tool, tools, fail and stall.",
        "Echo streams your message back, count says numbers, tool calls your first tool, fail breaks "
        "after five numbers and stall stops answering after five. The option rate sets the tokens a "
        "second.",
        "Because a test needs an answer that is the same every time.",
    ),
    _topic(
        "llama",
        "the llama engine | llama.cpp | GGUF | GGUF files | my own GGUF model",
        "what is the llama engine? | can I use a GGUF file? | how do I load my own GGUF? "
        "| does it use llama.cpp? | how do I run a bigger model?",
        "I have a GGUF from elsewhere, can I use it? | which library runs the models?",
        "The llama engine runs any GGUF file in the server process with llama.cpp.",
        "The llama engine runs GGUF models in the server process, through llama.cpp. I am one of "
        "them, the smallest; give serve the option --model to use a bigger one.",
        "It stops computing within one step when you interrupt, and it reuses the part of the "
        "conversation that it has already read. It needs no key and no network.",
        "Because GGUF is the format that people already have on their disks.",
    ),
    _topic(
        "logs",
        "logs | log backends | storage | the log | the SQLite log | the memory log",
        "where is my conversation stored? | which log backends exist? | what is the SQLite log? "
        "| is anything saved on disk? | which logs can I choose? | where are the events kept?",
        "do you write to a database? | on what storage do sessions live?",
        "Events are kept in memory or in a SQLite file.",
        "There are two logs: memory, which survives nothing, and SQLite, which survives the death of "
        "the process. SQLite is the default for serve, and you choose with the option --log.",
        "The SQLite file lies under your state directory. All that the sessions produced in one tick "
        "is committed together, and an event is delivered only after its commit.",
        "Because some conversations must survive a crash, and tests should not leave files behind.",
    ),
    _topic(
        "durable",
        "durability | durable before delivered | commits",
        "what does durable before delivered mean? | can I lose an event that I have seen? "
        "| when is an event committed? | is the log safe?",
        "could an event vanish after I got it? | are events saved before I see them?",
        "An event is committed to the log before any reader sees it.",
        "Durable before delivered means that an event is committed to the log before any reader "
        "sees it. So you can never have seen something that the log forgets.",
        "What committed survives depends on the log: memory survives nothing, SQLite survives the "
        "death of the process. If the log refuses a write, generation stops until it is back.",
        "Because after a crash no number may ever name two different contents.",
    ),
    _topic(
        "snapshot",
        "a snapshot | snapshots | the Snapshot message",
        "what is a snapshot? | how do I get the whole state? | when should I ask for a snapshot? "
        "| how does a new reader catch up?",
        "how do I see the state without reading all events? | what is a Snapshot good for?",
        "A snapshot is the state of a session at one seq, instead of all its events.",
        "A snapshot gives you the session, its turns and what is queued, as of one seq; live events "
        "follow from the next number. Ask for it when you resume or attach.",
        "It is the one control message that sets the cursor. A large one comes in several frames. "
        "Open tool calls are in it, so a new reader can still answer them.",
        "Because the end of a log alone cannot tell what came before.",
    ),
    _topic(
        "reader",
        "readers | a reader | cursors | slow readers",
        "what is a reader? | what is a cursor? | can two clients read the same session? "
        "| what if my client is slow? | how many readers may there be?",
        "may several people watch one session? | does a slow client block the others?",
        "A reader is a cursor into the log, not a queue.",
        "A reader is just a cursor into the log. Any number up to 64 may follow a session, each at "
        "its own pace, and a slow one holds nobody up.",
        "There is no queue for a reader. What piled up while it was slow leaves as one frame with "
        "several events. A reader can attach anywhere in the log, leave, and come back.",
        "Because a number costs nothing and a queue can grow without end.",
    ),
    _topic(
        "turn",
        "a turn | turns | TurnFinished | TurnStarted",
        "what is a turn? | how do I know that an answer is complete? | what is TurnFinished? "
        "| when does a turn end? | does every turn end?",
        "which event tells me that you are done? | how is the end of an answer signalled?",
        "A turn is one answer; it starts with TurnStarted and ends with exactly one TurnFinished.",
        "A turn is the answer to one message, tool rounds included. It begins with TurnStarted and "
        "ends with exactly one TurnFinished, on every path.",
        "That holds for a completion, an interrupt, a deadline, an engine failure, and even when the "
        "process dies: then the ending is written at the next start. A stream that ends without "
        "TurnFinished was cut, not finished.",
        "Because a client must be able to tell a finished answer from a broken one.",
    ),
    _topic(
        "finish",
        "finish reasons | the finish reason | finish_reason",
        "what finish reasons are there? | why did my turn end? | what does OWNER_LOST mean? "
        "| what does LENGTH mean? | how can a turn end?",
        "for which reasons can an answer end? | what does DISCONNECTED mean as an ending?",
        "Finish reasons include STOP, LENGTH, INTERRUPTED, DEADLINE, ERROR and OWNER_LOST.",
        "The finish reason says how a turn ended: STOP is the normal end, LENGTH means too many "
        "tokens, INTERRUPTED a stop by you, DEADLINE too much time, ERROR a failure.",
        "TOOL_CALLS means too many tool rounds, DISCONNECTED that nobody was there to read, and "
        "OWNER_LOST that the process died while it was generating.",
        "Because a client acts differently after a stop, a failure and a limit.",
    ),
    _topic(
        "usage",
        "usage | token counts | wasted tokens | the Usage message",
        "what is in usage? | how are tokens counted? | what are wasted tokens? "
        "| how many tokens did I use? | what does generated mean in usage?",
        "can I see what an answer cost? | how do you count tokens?",
        "Usage counts tokens, and generated is always delivered plus wasted.",
        "Every ending carries its usage. Generated tokens are delivered plus wasted ones, to the "
        "token: delivered are in the log, wasted were computed after a stop.",
        "There are also the prompt tokens and how many of them were cached, what the user had seen, "
        "and what stays in the context. If the engine could not confirm a number it is marked as "
        "estimated.",
        "Because a stop that keeps computing costs money, and the count shows it.",
    ),
    _topic(
        "timing",
        "timing | the Timing message | latency | time to first token",
        "what is in timing? | how fast was my answer? | what is time to first token? | how do I measure latency?",
        "can I see how long an answer took? | which times are reported?",
        "Timing gives the time queued, the time to the first token, and the total.",
        "Every ending carries its timing: the time queued, the time to the first token, the time "
        "for each token, the longest gap and the total.",
        "The time to the first token runs from the accepted message to the first committed text. "
        "The chat command shows the timings at the end of a turn.",
        "Because without numbers nobody can say whether it is slow, or where.",
    ),
    _topic(
        "grpcurl",
        "grpcurl | the grpcurl command | calling it by hand",
        "how do I use grpcurl? | can I try it from the shell? | how do I call it by hand? "
        "| what is the grpcurl command to list services?",
        "is there a way to poke at the server without code? | does grpcurl work?",
        "Run grpcurl -plaintext localhost:50051 list to see the services.",
        "Reflection is on, so grpcurl needs no proto files. The command grpcurl -plaintext "
        "localhost:50051 list shows the services.",
        "Then describe backchannel.v1.ConversationService, call CreateSession, send a message with "
        "Send and read it with Attach. Converse works too, with several frames on standard input.",
        "Because it is the quickest way to see what a gRPC server offers.",
    ),
    _topic(
        "cli",
        "the CLI | the command line | the commands | the backchannel command",
        "which commands are there? | how do I use the command line? | what does the CLI offer? "
        "| what can I type in the terminal?",
        "what can the backchannel program do? | name the subcommands",
        "The commands are backchannel serve, chat, models and sessions.",
        "The commands are backchannel serve, which starts the server, chat, which talks to it, "
        "models, which lists the models, and sessions, which lists the sessions.",
        "Each of them explains itself with --help and shows examples. The settings can also come "
        "from BACKCHANNEL_ variables or from a TOML file.",
        "Because one should be able to try everything without writing code.",
    ),
    _topic(
        "serve",
        "backchannel serve | serve | the serve command | starting the server",
        "how do I start the server? | what does backchannel serve do? | which options has serve? "
        "| how do I run it? | how do I configure the server?",
        "what must I type to launch the service? | how can I get the server going?",
        "backchannel serve starts the server on port 50051.",
        "Start the server with: backchannel serve. Its options are --listen, --engine, --model, --log and --config.",
        "The same settings can come from variables that begin with BACKCHANNEL_ and from a TOML "
        "file. By default it listens on loopback only, keeps its log in SQLite and serves the house "
        "model.",
        "Because the defaults should work without any setting.",
    ),
    _topic(
        "chat",
        "backchannel chat | the chat command | the terminal chat",
        "how do I chat in the terminal? | what does backchannel chat do? | is there a chat client? "
        "| how do I leave the chat? | what does Ctrl-C do?",
        "what happens if I press Ctrl-C in the chat? | can I talk to you from a shell?",
        "backchannel chat is a terminal chat; Ctrl-C interrupts the answer.",
        "Run backchannel chat to talk in the terminal. Ctrl-C interrupts the answer and keeps it, "
        "and a second Ctrl-C leaves.",
        "Tool calls are shown and answered, and at the end of a turn you see the timings. With "
        "--session you go on with an earlier session.",
        "Because the quickest test of a conversation is to have one.",
    ),
    _topic(
        "models",
        "backchannel models | the models command | the list of models | ListModels",
        "which models are there? | how do I list the models? | what does ListModels do? "
        "| what models can I choose from?",
        "how can I find out what models the server has? | show me the available models",
        "backchannel models lists the models of a server.",
        "Run backchannel models to see what a server offers. Over gRPC it is ListModels of the ModelService.",
        "Each model has a name such as llama/house, a description, the size of its context and what "
        "it can do. The description of the house model says honestly how tiny it is.",
        "Because a client should not have to guess a name.",
    ),
    _topic(
        "sessions_cmd",
        "backchannel sessions | the sessions command | ListSessions | listing sessions",
        "how do I list my sessions? | what does backchannel sessions do? | what is ListSessions? "
        "| how do I find an old session?",
        "where can I see my earlier conversations? | can I get a list of conversations?",
        "backchannel sessions lists the sessions of a server.",
        "Run backchannel sessions to see the sessions of a server. Over gRPC it is ListSessions, "
        "and GetSession shows one of them.",
        "Off loopback ListSessions is refused with PERMISSION_DENIED, as long as nobody is identified.",
        "Because you need the id of a session to go on with it.",
    ),
    _topic(
        "ports",
        "ports | the port | port numbers | the default ports",
        "which port do you use? | what is the gRPC port? | where does the server listen? "
        "| which ports are used by default? | what port is HTTP on?",
        "on what port can I reach it? | to which address do I connect?",
        "gRPC is on port 50051, HTTP on 8080 and metrics on 9464.",
        "By default gRPC is on port 50051, HTTP through Envoy on 8080, and metrics on 9464.",
        "Use --listen to choose another address for gRPC. Unless you say --anonymous the server "
        "listens on loopback only.",
        "Because well-known defaults save everybody a question.",
    ),
    _topic(
        "attach_send",
        "Attach | Send | Attach and Send | the split half",
        "what is Attach? | what is Send? | how do Attach and Send work? "
        "| can I use it without streaming up? | what is the split half?",
        "what if my client cannot do bidirectional streams? | how do I send one frame only?",
        "Attach streams events down and Send takes one frame up.",
        "Attach is a stream of server frames, and Send takes a single client frame and gives its "
        "receipt. Together they do what Converse does on one stream.",
        "They are made for gRPC-Web, but any client may use them. Attach takes after_seq as a resume "
        "does. Open and Close cannot be sent through Send.",
        "Because not every client can stream in both directions.",
    ),
    _topic(
        "create",
        "CreateSession | creating a session | SessionConfig | a new session",
        "how do I create a session? | what is CreateSession? | how do I start a conversation? "
        "| what can I configure in a session?",
        "what is the first step to get a conversation? | how do I open a new session?",
        "CreateSession makes a session from a configuration.",
        "Use CreateSession, or an Open frame with a configuration on Converse. You choose the model, "
        "the system text, the tools, the sampling and the limits; all of them have defaults.",
        "You may choose the session id yourself, 16 to 64 characters of letters, digits, dash and "
        "underscore. Then repeating the same call gives the same session, and another configuration "
        "gives ALREADY_EXISTS.",
        "Because a session must exist before anything can be said in it.",
    ),
    _topic(
        "delete",
        "DeleteSession | deleting a session | session expiry",
        "how do I delete a session? | when does a session end? | do sessions expire? "
        "| how do I end a conversation for good?",
        "how can I get rid of a conversation? | how long are sessions kept?",
        "DeleteSession ends a session; otherwise it expires after 7 idle days.",
        "Only DeleteSession ends a session; closing a stream does not. An idle session expires after 7 days.",
        "Its readers get a SessionClosed event and their streams end well. The id stays reserved for "
        "a day, so that nobody can create it again by mistake.",
        "Because leaving and ending are two different things.",
    ),
    _topic(
        "disconnect",
        "the disconnect policy | disconnects | on_disconnect | leaving a stream",
        "what happens when I disconnect? | does generation go on without me? "
        "| what is the disconnect policy? | what if nobody is reading?",
        "will you keep talking after I leave? | does closing my laptop stop the answer?",
        "By default a turn is cancelled 30 seconds after the last reader has gone.",
        "When no reader is attached the disconnect policy applies. By default the turn is cancelled "
        "after a grace of 30 seconds; it can also go on, or be cancelled at once.",
        "The actions are CANCEL_AFTER_GRACE, CONTINUE and CANCEL_NOW. If somebody attaches within "
        "the grace, the turn just goes on. A turn that was cancelled so ends as DISCONNECTED.",
        "Because computing for nobody is waste, but a short cut in the network is not a goodbye.",
    ),
    _topic(
        "delivery",
        "delivery | queued messages | DELIVERY_QUEUE | DELIVERY_INTERRUPT",
        "what if I send a message while you are answering? | what is DELIVERY_INTERRUPT? "
        "| are messages queued? | how many messages can be queued? | what is DELIVERY_QUEUE?",
        "may I write while an answer is still coming? | what happens to a second message?",
        "A message waits for the running turn, or interrupts it, as you choose.",
        "A message says how it is delivered. DELIVERY_QUEUE, the default, waits until the running "
        "turn has ended; DELIVERY_INTERRUPT stops it now and is answered at once.",
        "Up to 16 messages may wait. A queued message can be withdrawn by an interrupt that names "
        "its frame. One that interrupts goes before those that wait.",
        "Because sometimes you add to what you said, and sometimes you change your mind.",
    ),
    _topic(
        "crash",
        "crashes | recovery | kill -9 | a crash of the server",
        "what happens when the server crashes? | is my chat lost after kill -9? "
        "| how does recovery work? | what if the process dies in the middle of an answer?",
        "the server was killed, what about my conversation? | do you survive a power cut?",
        "With the SQLite log a session survives the death of the process.",
        "With the SQLite log nothing that you have seen is lost. At the next start the state is read "
        "from the log, and a turn that was broken gets its one ending, OWNER_LOST.",
        "A turn that was waiting for tools goes on waiting, with its deadlines as they were. A "
        "message that was accepted before the crash is answered after it. No number ever names two "
        "contents.",
        "Because the state is nothing but the events, and those are on the disk.",
    ),
    _topic(
        "retention",
        "retention | checkpoints | old events | trimming",
        "how long are events kept? | what if my cursor is too old? | what is OUT_OF_RANGE? "
        "| are old events deleted? | what is a checkpoint?",
        "does the log grow for ever? | what happens to very old events?",
        "Old events may be trimmed, and a cursor that is too old gets OUT_OF_RANGE.",
        "The log is kept by age, count and size. A cursor older than what is kept gets OUT_OF_RANGE "
        "with the earliest seq, or a snapshot if it asked for one; never a silent gap.",
        "Events are trimmed only up to a checkpoint, which holds the state at that number. Events of "
        "a running turn or of an open tool call are never trimmed.",
        "Because a disk is finite, and a hidden gap would be a lie.",
    ),
    _topic(
        "health",
        "health | health checks | reflection | server reflection",
        "is there a health check? | does it support reflection? | how do I check the server? "
        "| which health service is there?",
        "how can a load balancer see if you are alive? | can tools discover the API?",
        "There is the standard gRPC health service, and reflection.",
        "The server has the standard gRPC health service, one name for each service and the empty "
        "name. Reflection is served as v1 and v1alpha.",
        "While the server drains, health says NOT_SERVING. Because of reflection, tools such as "
        "grpcurl work without any proto file.",
        "Because load balancers and tools already know these two services.",
    ),
    _topic(
        "probe",
        "Probe | the ProbeService | buffering on the way",
        "what is the ProbeService? | how do I find out whether a proxy buffers? "
        "| what does Probe do? | my tokens come in bursts, why?",
        "can I test whether something on the way buffers? | is there a test of the line?",
        "Probe sends timed frames, so that you see whether something on the way buffers.",
        "The ProbeService sends a number of frames, each with the time it was sent. If they arrive "
        "in one burst, something between you and the server is buffering.",
        "You choose the count, the interval and some padding. It needs no session and no model.",
        "Because a buffering proxy looks just like a slow model.",
    ),
    _topic(
        "errors",
        "errors | error codes | statuses | ErrorInfo",
        "how are errors reported? | which error codes are there? | what is ErrorInfo? "
        "| what does RESOURCE_EXHAUSTED mean? | what does FAILED_PRECONDITION mean?",
        "how do I find out what I did wrong? | what do I get for a bad request?",
        "Errors are gRPC statuses with an ErrorInfo that gives a reason.",
        "Errors are gRPC statuses, chosen by who is to blame, and each carries an ErrorInfo with a "
        "reason. A bad field is named, and UNAVAILABLE says when to retry.",
        "INVALID_ARGUMENT is a bad field, NOT_FOUND an unknown session or model, OUT_OF_RANGE a bad "
        "cursor, RESOURCE_EXHAUSTED a full queue or a quota, and INTERNAL is our bug.",
        "Because an error should say what to do next.",
    ),
    _topic(
        "sdk",
        "the SDK | the Python SDK | the Python client | the client library",
        "is there a Python client? | how do I use it from Python? | what does the SDK do? "
        "| does the SDK reconnect? | is there a client library?",
        "I want to write a Python program, what is there? | does the library handle reconnects?",
        "There is an async, typed Python client in backchannel.client.",
        "There is an async Python client. It iterates over events, sends messages and interrupts, "
        "runs your tools from decorated functions, and reconnects by itself after a cut.",
        "It waits a little longer at each try and resumes after the last event it saw. It raises "
        "only when the session is really gone.",
        "Because reconnecting well is easy to get wrong.",
    ),
    _topic(
        "security",
        "security | access | --anonymous | loopback",
        "is it secure? | who can read my session? | why does it listen on loopback only? "
        "| what does --anonymous do? | can others see my conversation?",
        "may I put it on the internet? | who has access to what I write?",
        "A session id is a secret: whoever has it can use the session.",
        "There are no user accounts yet, so a session id is a secret: whoever knows it may use the "
        "session. The server listens on loopback only, unless you say --anonymous.",
        "Ids have at least 128 random bits. For somebody else's session you get the same answer as "
        "for one that does not exist. Prompts and answers are not written to the diagnostic logs.",
        "Because a server that is open to all should be a decision and not an accident.",
    ),
    _topic(
        "limits",
        "limits | the limits | quotas | maximum sizes",
        "what limits are there? | how big may a frame be? | how many tools can I declare? "
        "| how many tool rounds are allowed? | how long may a turn take?",
        "is there an upper bound for messages? | what is the maximum size of a frame?",
        "A frame may have 4 MiB, a turn 10 minutes and 8 tool rounds.",
        "By default a frame may have 4 MiB, a turn may take 10 minutes and 8 tool rounds, 16 "
        "messages may wait, and a session may have 64 readers and 128 tools.",
        "The time of a turn includes the waiting for tools. What is too large is refused with "
        "RESOURCE_EXHAUSTED or INVALID_ARGUMENT, and the server stays healthy.",
        "Because whatever a stranger can grow must have an end.",
    ),
    _topic(
        "ping_close",
        "Ping | Close | Ping and Close",
        "what is a Ping? | what does Close do? | how do I leave politely? "
        "| does Close end the session? | how do I ask for a heartbeat?",
        "how do I say goodbye to the stream? | what frame ends the stream?",
        "Ping asks for a heartbeat, and Close ends the stream but not the session.",
        "A Ping asks for a heartbeat now. Close ends the stream politely, after its receipt; the session stays.",
        "If the request stream ends without Close, that counts as a disconnect and the disconnect "
        "policy decides. Only DeleteSession ends the session itself.",
        "Because a goodbye and a broken line mean different things.",
    ),
    _topic(
        "grpc",
        "gRPC | the protocol | the proto files | the API",
        "what is gRPC? | where is the API defined? | which languages can I use? | are there proto files?",
        "can I write a client in Go? | in what is the API written down?",
        "The API is gRPC, defined in the proto files of the package backchannel.v1.",
        "The API is gRPC, and its proto files are in proto/backchannel/v1. Clients can be made from "
        "them for any language that gRPC knows.",
        "The main services are ConversationService, ModelService and ProbeService. Every message and "
        "field is explained in the comments of the proto files.",
        "Because gRPC streams in both directions and has a schema.",
    ),
    _topic(
        "install",
        "the installation | make run | make test | getting started",
        "how do I install it? | how do I get started? | what does make run do? "
        "| what do I need to run it? | how do I run the tests?",
        "what are the first steps for a newcomer? | which Python version is needed?",
        "Type make run; you need Python 3.11 or newer and make.",
        "Type make run to start it and make test to test it. Both do their own set-up; you need "
        "Python 3.11 or newer and make.",
        "The default model is in the package, so there is nothing to download and no key to get. "
        "make help lists the other targets.",
        "Because the first minute decides whether somebody stays.",
    ),
    _topic(
        "license",
        "the licence | the license | open source",
        "what is the licence? | is it open source? | may I use it at work? | which license is it?",
        "under which terms can I use it? | is it free software?",
        "Backchannel is under the Apache License 2.0.",
        "Backchannel is open source under the Apache License 2.0. The same holds for me, the house model.",
        "I was trained only on text that the project's own program wrote, so there is no other licence to mind.",
        "Because it lets everybody use it, also at work.",
    ),
    _topic(
        "token_path",
        "the way of a token | the inside | the architecture | how it works inside",
        "how does it work inside? | what is the architecture? | how does a token get to me? "
        "| what happens between the engine and me?",
        "which stations does a token pass? | how is the server built?",
        "A token goes from the engine to the log, and from the log to every reader.",
        "The engine gives a chunk, the session decides which events it makes, the committer writes "
        "them to the log, and then each reader sends them from its cursor.",
        "Decide, commit, apply, deliver: in that order. All that the sessions produced in one tick is "
        "committed together. An event becomes bytes once, and every reader shares those bytes.",
        "Because whoever reads only what is committed can never see something that did not happen.",
    ),
)
