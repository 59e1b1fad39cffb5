/** The chats that this browser remembers. */
import { type Chat, forgetChat, loadChats, rememberChat } from "./settings.js";

export class Shelf {
  chats: readonly Chat[] = loadChats();

  /** The chat that another was made from, to say something anew; empty if it was not. */
  originOf(sessionId: string): string {
    return this.#find(sessionId)?.from ?? "";
  }

  /** Puts a chat on top: by what was said first, if it is new. */
  remember(sessionId: string, text: string, model: string, from = ""): void {
    const known = this.#find(sessionId);
    this.chats = rememberChat({
      sessionId,
      title: known?.title ?? text,
      model,
      atMs: Date.now(),
      from: known?.from ?? from,
    });
  }

  forget(sessionId: string): void {
    this.chats = forgetChat(sessionId);
  }

  #find(sessionId: string): Chat | undefined {
    return this.chats.find((chat) => chat.sessionId === sessionId);
  }
}
