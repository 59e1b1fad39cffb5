import { create } from "@bufbuild/protobuf";
import { durationFromMs } from "@bufbuild/protobuf/wkt";
import { Code, ConnectError } from "@connectrpc/connect";
import { describe, expect, it } from "vitest";
import { callError } from "../src/index.js";
import {
  BadRequestSchema,
  ErrorInfoSchema,
  RetryInfoSchema,
} from "../src/gen/google/rpc/error_details_pb.js";

describe("a status", () => {
  it("tells reason, field and patience", () => {
    const error = callError(
      new ConnectError("full", Code.ResourceExhausted, undefined, [
        {
          desc: ErrorInfoSchema,
          value: create(ErrorInfoSchema, {
            reason: "QUEUE_FULL",
            domain: "backchannel",
            metadata: { most: "16" },
          }),
        },
        {
          desc: BadRequestSchema,
          value: create(BadRequestSchema, { fieldViolations: [{ field: "message" }] }),
        },
        { desc: RetryInfoSchema, value: create(RetryInfoSchema, { retryDelay: durationFromMs(2500) }) },
      ]),
    );
    expect(error).toMatchObject({
      reason: "QUEUE_FULL",
      field: "message",
      metadata: { most: "16" },
      retryAfterMs: 2500,
      transient: true,
      gone: false,
    });
  });

  it("without details is a cut if a breaking connection looks like it", () => {
    expect(callError(new TypeError("Failed to fetch")).transient).toBe(true);
    expect(callError(new ConnectError("missing trailer", Code.Internal)).transient).toBe(true);
    expect(callError(new ConnectError("404", Code.Unimplemented)).transient).toBe(false);
    expect(callError(new ConnectError("who are you", Code.Unauthenticated)).transient).toBe(false);
  });

  it("of somebody else's domain has no reason of ours", () => {
    const info = create(ErrorInfoSchema, { reason: "SESSION_NOT_FOUND", domain: "elsewhere" });
    const error = new ConnectError("", Code.Unavailable, undefined, [{ desc: ErrorInfoSchema, value: info }]);
    expect(callError(error)).toMatchObject({ reason: "", gone: false, message: "Unavailable" });
  });
});
