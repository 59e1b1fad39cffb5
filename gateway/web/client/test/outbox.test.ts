import { create } from "@bufbuild/protobuf";
import { Code } from "@connectrpc/connect";
import { describe, expect, it } from "vitest";
import {
  ClosedError,
  Delivery,
  type Receipt,
  ReceiptSchema,
  ReceiptStatus,
  WebFrameStore,
  memoryStorage,
} from "../src/index.js";
import { SESSION, accepted, bench, refused, settle, unavailable } from "./support.js";

function rejected(code: Code, message: string): () => Promise<Receipt> {
  return () =>
    Promise.resolve(
      create(ReceiptSchema, { status: ReceiptStatus.REJECTED, error: { code, message } }),
    );
}

const keys = (storage: { length: number }) => storage.length;

describe("a frame", () => {
  it("is kept until it is receipted, and sent under one id however often that takes", async () => {
    const { client, wire, time, storage } = bench();
    const conversation = client.resume(SESSION);
    wire.answers.push(() => Promise.reject(new TypeError("Failed to fetch")), () => Promise.reject(unavailable()));
    const { frameId, receipt } = conversation.send("hello", { delivery: Delivery.QUEUE });
    expect(keys(storage)).toBe(1);
    await time.pass(750);
    await time.pass(1500);
    expect((await receipt).status).toBe(ReceiptStatus.ACCEPTED);
    expect(wire.sent.map((frame) => frame.frameId)).toEqual([frameId, frameId, frameId]);
    expect(keys(storage)).toBe(0);
    expect(conversation.pending).toEqual([]);
  });

  it("is sent again by the next page, under the same id", async () => {
    const storage = memoryStorage();
    const first = bench({ storage });
    const dying = first.client.resume(SESSION);
    first.wire.answers.push(() => new Promise(() => undefined));
    const { frameId } = dying.send("hello");
    await settle();

    const second = bench({ storage });
    const conversation = second.client.resume(SESSION);
    conversation.open();
    await settle();
    expect(second.wire.sent).toMatchObject([
      { frameId, frame: { case: "message", value: { parts: [{ content: { value: "hello" } }] } } },
    ]);
    expect(keys(storage)).toBe(0);
  });

  it("stays in the store when the conversation is closed before its receipt", async () => {
    const { client, wire, storage } = bench();
    const conversation = client.resume(SESSION);
    wire.answers.push(() => Promise.reject(unavailable()));
    const { receipt } = conversation.send("hello");
    await settle();
    conversation.close();
    await expect(receipt).rejects.toBeInstanceOf(ClosedError);
    expect(keys(storage)).toBe(1);
  });

  it("is refused to its sender, and forgotten", async () => {
    const { client, wire, storage } = bench();
    wire.answers.push(rejected(Code.InvalidArgument, "no parts"));
    const { receipt } = client.resume(SESSION).send("");
    await expect(receipt).rejects.toMatchObject({ code: Code.InvalidArgument, message: "no parts" });
    expect(keys(storage)).toBe(0);
  });

  it("that the server cannot take for now is sent again", async () => {
    const { client, wire, time } = bench();
    wire.answers.push(rejected(Code.Unavailable, "the log is away"));
    const { receipt } = client.resume(SESSION).send("hello");
    await time.pass(750);
    expect((await receipt).status).toBe(ReceiptStatus.ACCEPTED);
  });

  it("of an earlier page that is refused is told", async () => {
    const storage = memoryStorage();
    const first = bench({ storage });
    first.wire.answers.push(() => new Promise(() => undefined));
    const { frameId } = first.client.resume(SESSION).send("hello");
    const second = bench({ storage });
    second.wire.answers.push(() => Promise.reject(refused(Code.NotFound, "SESSION_NOT_FOUND")));
    const conversation = second.client.resume(SESSION);
    const told: string[] = [];
    conversation.subscribe({ refused: (frame, error) => told.push(frame.frameId, error.reason) });
    conversation.open();
    await settle();
    expect(told).toEqual([frameId, "SESSION_NOT_FOUND"]);
  });

  it("older than a day is not sent: the server may have forgotten its id", async () => {
    const storage = memoryStorage();
    const day = 24 * 3600 * 1000;
    new WebFrameStore(storage, () => 0).put(SESSION, { frameId: "old", bytes: new Uint8Array() });
    const store = new WebFrameStore(storage, () => day);
    expect(store.load(SESSION)).toEqual([]);
    expect(keys(storage)).toBe(0);
  });

  it("is sent even where storage is forbidden", async () => {
    const forbidden = (): never => {
      throw new DOMException("no", "SecurityError");
    };
    const { client, wire } = bench({
      storage: { length: 0, key: forbidden, getItem: forbidden, setItem: forbidden, removeItem: forbidden },
    });
    await client.resume(SESSION).send("hello").receipt;
    expect(wire.sent).toHaveLength(1);
  });
});

describe("the order of frames", () => {
  it("is kept among messages, and a stop overtakes them", async () => {
    const { client, wire } = bench();
    const conversation = client.resume(SESSION);
    let open: (receipt: Promise<Receipt>) => void = () => undefined;
    wire.answers.push(() => new Promise((resolve) => (open = resolve)));
    const one = conversation.send("one");
    const two = conversation.send("two");
    const stop = conversation.interrupt({ turnId: "t", displayedOffset: 3 });
    const withdrawal = conversation.interrupt({ targetFrameId: two.frameId });
    await stop.receipt;
    expect(wire.sent.map(({ frameId }) => frameId)).toEqual([one.frameId, stop.frameId]);
    open(accepted(one));
    await withdrawal.receipt;
    expect(wire.sent.slice(2).map(({ frameId }) => frameId)).toEqual([two.frameId, withdrawal.frameId]);
    expect(wire.sent[1]?.frame).toMatchObject({ value: { displayedOffset: 3, turnId: "t" } });
  });
});

describe("an ack", () => {
  it("has no id, is not repeated, and only the newest of many is sent", async () => {
    const { client, wire, time } = bench();
    const conversation = client.resume(SESSION);
    wire.answers.push(() => Promise.reject(unavailable()));
    for (let seq = 1n; seq <= 9n; seq += 1n) {
      conversation.ack(seq, Number(seq));
    }
    await time.pass(60_000);
    expect(wire.sent.map((frame) => [frame.frameId, frame.frame.value])).toMatchObject([
      ["", { displayedSeq: 1n }],
      ["", { displayedSeq: 9n, displayedOffset: 9 }],
    ]);
  });
});
