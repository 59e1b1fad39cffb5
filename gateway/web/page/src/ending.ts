/** How an answer ended, in words. */
import { FinishReason, type TurnView } from "@backchannel/client";

/** How a turn ended, for people; empty while it runs or when all is well. */
export function endingOf(turn: TurnView): string {
  switch (turn.finishReason) {
    case FinishReason.UNSPECIFIED:
    case FinishReason.STOP:
      return "";
    case FinishReason.LENGTH:
      return "cut off: the limit of tokens was reached";
    case FinishReason.TOOL_CALLS:
      return "ended: the model asked for too many rounds of tools";
    case FinishReason.INTERRUPTED:
      return "stopped";
    case FinishReason.STEERED:
      return "steered";
    case FinishReason.DISCONNECTED:
      return "ended: nobody was connected any more";
    case FinishReason.DEADLINE:
      return "ended: it took too long";
    case FinishReason.OWNER_LOST:
      return "ended: the server that spoke was lost";
    case FinishReason.CONTENT_FILTER:
      return "ended by the engine's content filter";
    default:
      return "failed";
  }
}
