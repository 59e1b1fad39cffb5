/**
 * 192 random bits, but for a hair, in 32 characters of `A-Za-z0-9_-`: a frame or session id. Never with a `-` first, which a
 * command line would take for an option.
 */
export function newId(): string {
  const bytes = crypto.getRandomValues(new Uint8Array(24));
  return btoa(String.fromCharCode(...bytes))
    .replaceAll("+", "-")
    .replaceAll("/", "_")
    .replace(/^-/, "_");
}
