/** What a new session is made with, by the page's settings. */
import type { Model, SessionInit, Tool } from "@backchannel/client";
import { type Settings, parseOptions } from "./settings.js";
import { TOOLS } from "./tools.js";

export interface Beginning {
  readonly config: SessionInit;
  /** Those that the user chose, if the model takes any. */
  readonly tools: readonly Tool[];
}

export function beginning(settings: Settings, model: Model | undefined): Beginning {
  const takesTools = model?.capabilities.includes("tools") ?? true;
  const sampling = {
    ...(settings.maxTokens === "" ? {} : { maxTokens: Number(settings.maxTokens) }),
    ...(settings.temperature === "" ? {} : { temperature: Number(settings.temperature) }),
  };
  const config: SessionInit = {
    model: model?.name ?? settings.model,
    system: settings.system,
    sampling,
    engineOptions: parseOptions(settings.engineOptions),
  };
  const tools = takesTools ? TOOLS.filter(({ spec }) => settings.tools.includes(spec.name ?? "")) : [];
  return { config, tools };
}
