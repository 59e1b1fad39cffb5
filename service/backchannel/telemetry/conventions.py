"""Names of attributes, as OpenTelemetry has agreed on them, and our own where it has not.

Generative AI: the conventions' own release v0.1.0, which still calls itself "development"
(https://github.com/open-telemetry/semantic-conventions-genai). RPC and errors: v1.44
(https://github.com/open-telemetry/semantic-conventions). They are written out here rather than
imported from `opentelemetry.semconv._incubating`, which promises nothing from one release to the
next. A new version of the conventions is a change of this module alone.
"""

from __future__ import annotations

from typing import Final

GEN_AI_VERSION: Final = "0.1.0"
VERSION: Final = "1.44.0"
SCHEMA_URL: Final = f"https://opentelemetry.io/schemas/{VERSION}"

# --- generative AI ----------------------------------------------------------------------------
OPERATION_NAME: Final = "gen_ai.operation.name"
CHAT: Final = "chat"
EXECUTE_TOOL: Final = "execute_tool"
PROVIDER_NAME: Final = "gen_ai.provider.name"
CONVERSATION_ID: Final = "gen_ai.conversation.id"
REQUEST_MODEL: Final = "gen_ai.request.model"
REQUEST_MAX_TOKENS: Final = "gen_ai.request.max_tokens"
REQUEST_TEMPERATURE: Final = "gen_ai.request.temperature"
REQUEST_TOP_P: Final = "gen_ai.request.top_p"
REQUEST_SEED: Final = "gen_ai.request.seed"
REQUEST_STREAM: Final = "gen_ai.request.stream"
RESPONSE_MODEL: Final = "gen_ai.response.model"
RESPONSE_FINISH_REASONS: Final = "gen_ai.response.finish_reasons"
RESPONSE_TIME_TO_FIRST_CHUNK: Final = "gen_ai.response.time_to_first_chunk"
USAGE_INPUT_TOKENS: Final = "gen_ai.usage.input_tokens"
USAGE_OUTPUT_TOKENS: Final = "gen_ai.usage.output_tokens"
USAGE_CACHE_READ: Final = "gen_ai.usage.cache_read.input_tokens"
TOOL_NAME: Final = "gen_ai.tool.name"
TOOL_CALL_ID: Final = "gen_ai.tool.call.id"
TOOL_TYPE: Final = "gen_ai.tool.type"
# Only where content is asked for.
INPUT_MESSAGES: Final = "gen_ai.input.messages"
OUTPUT_MESSAGES: Final = "gen_ai.output.messages"
SYSTEM_INSTRUCTIONS: Final = "gen_ai.system_instructions"
TOOL_CALL_ARGUMENTS: Final = "gen_ai.tool.call.arguments"
TOOL_CALL_RESULT: Final = "gen_ai.tool.call.result"

# --- RPC and errors ---------------------------------------------------------------------------
RPC_SYSTEM: Final = "rpc.system.name"
RPC_METHOD: Final = "rpc.method"
RPC_STATUS: Final = "rpc.response.status_code"
ERROR_TYPE: Final = "error.type"

# --- ours -------------------------------------------------------------------------------------
RPC_OUTCOME: Final = "backchannel.rpc.outcome"
TURN_ID: Final = "backchannel.turn.id"
ENDING: Final = "backchannel.turn.ending"
ERROR_REASON: Final = "backchannel.turn.error"
LINK: Final = "backchannel.link"
RECOVERED: Final = "backchannel.turn.recovered"
DELIVERED: Final = "backchannel.tokens.delivered"
DISPLAYED: Final = "backchannel.tokens.displayed"
KEPT: Final = "backchannel.tokens.kept"
WASTED: Final = "backchannel.tokens.wasted"
GENERATED: Final = "backchannel.tokens.generated"
ESTIMATED: Final = "backchannel.tokens.estimated"
TTFT_S: Final = "backchannel.turn.time_to_first_token"
QUEUED_S: Final = "backchannel.turn.queued"
MAX_GAP_S: Final = "backchannel.turn.max_gap"
ROUND: Final = "backchannel.run.round"
TOOL_OUTCOME: Final = "backchannel.tool.outcome"
AFTER_SEQ: Final = "backchannel.reader.after_seq"
REPLAYED: Final = "backchannel.reader.replayed_events"
DOOR: Final = "backchannel.reader.door"
READER_ENDING: Final = "backchannel.reader.ending"
