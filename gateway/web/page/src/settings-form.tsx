/** What can be set. All but the theme is for chats that begin from now on. */
import type { VNode } from "preact";
import type { Chat } from "./chat.js";
import type { Theme } from "./settings.js";
import { TOOLS } from "./tools.js";

const THEMES: readonly (readonly [Theme, string])[] = [
  ["auto", "System"],
  ["light", "Light"],
  ["dark", "Dark"],
];

export function SettingsForm({ chat }: { chat: Chat }): VNode {
  const { settings } = chat;
  return (
    <div class="settings">
      <fieldset class="segments">
        <legend>Theme</legend>
        {THEMES.map(([theme, name]) => (
          <label key={theme}>
            <input
              type="radio"
              name="theme"
              checked={settings.theme === theme}
              onChange={() => chat.set({ theme })}
            />
            <span>{name}</span>
          </label>
        ))}
      </fieldset>
      <p class="faint small">What follows is for chats that begin from now on.</p>
      <fieldset>
        <legend>Tools that this page runs</legend>
        {TOOLS.map(({ spec }) => {
          const name = spec.name ?? "";
          const on = settings.tools.includes(name);
          const tools = on ? settings.tools.filter((each) => each !== name) : [...settings.tools, name];
          return (
            <label key={name} class="check">
              <input type="checkbox" checked={on} onChange={() => chat.set({ tools })} />
              <span>
                <strong>{name}</strong> <span class="faint">{spec.description}</span>
              </span>
            </label>
          );
        })}
      </fieldset>
      <label>
        What the model is told first
        <textarea
          rows={4}
          name="system"
          value={settings.system}
          onInput={({ currentTarget }) => chat.set({ system: currentTarget.value })}
        />
      </label>
      <div class="row">
        <label>
          Most tokens
          <input
            type="number"
            name="max-tokens"
            min={1}
            value={settings.maxTokens}
            placeholder="the engine’s own"
            onInput={({ currentTarget }) => chat.set({ maxTokens: currentTarget.value })}
          />
        </label>
        <label>
          Temperature
          <input
            type="number"
            name="temperature"
            min={0}
            max={2}
            step={0.1}
            value={settings.temperature}
            placeholder="the engine’s own"
            onInput={({ currentTarget }) => chat.set({ temperature: currentTarget.value })}
          />
        </label>
      </div>
      <label>
        Engine options
        <input
          type="text"
          name="engine-options"
          spellcheck={false}
          value={settings.engineOptions}
          placeholder="rate=20 prefill_ms=300"
          onInput={({ currentTarget }) => chat.set({ engineOptions: currentTarget.value })}
        />
        <span class="faint">For scripted models: tokens a second, and a wait before the first.</span>
      </label>
    </div>
  );
}
