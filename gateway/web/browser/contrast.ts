/** What can hardly be read. */
import type { Page } from "playwright-core";

/** Text on the screen with less contrast than WCAG 2.2 AA wants. */
export async function tooFaint(page: Page): Promise<string[]> {
  // Nothing fades in or out while it is looked at.
  await page.emulateMedia({ reducedMotion: "reduce" });
  const found = await page.evaluate(() => {
    const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
    const rgba = (colour: string): number[] => {
      if (!canvas) {
        throw new Error("no canvas");
      }
      canvas.clearRect(0, 0, 1, 1);
      canvas.fillStyle = colour;
      canvas.fillRect(0, 0, 1, 1);
      return [...canvas.getImageData(0, 0, 1, 1).data];
    };
    const luminance = (colour: number[]): number => {
      const [red = 0, green = 0, blue = 0] = colour.map((part) => {
        const share = part / 255;
        return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
      });
      return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
    };
    const over = (top: number[], below: number[]): number[] => {
      const alpha = (top[3] ?? 255) / 255;
      return [0, 1, 2].map((index) => (top[index] ?? 0) * alpha + (below[index] ?? 0) * (1 - alpha));
    };
    const ground = (element: Element | null): number[] => {
      if (!element) {
        return [255, 255, 255];
      }
      const colour = rgba(getComputedStyle(element).backgroundColor);
      return colour[3] === 255 ? colour : over(colour, ground(element.parentElement));
    };
    const faint: string[] = [];
    let looked = 0;
    const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (texts.nextNode()) {
      const element = texts.currentNode.parentElement;
      const text = texts.currentNode.textContent?.trim() ?? "";
      if (!element || text === "" || !element.checkVisibility({ opacityProperty: true, visibilityProperty: true })) {
        continue;
      }
      const { width } = element.getBoundingClientRect();
      // WCAG leaves out what can't be used; the rest is for the ear.
      if (width <= 1 || element.closest(":disabled, [aria-disabled=true], .unseen, .skip, noscript, option")) {
        continue;
      }
      const style = getComputedStyle(element);
      const below = ground(element);
      const opacity = Number(style.opacity);
      const colour = rgba(style.color);
      colour[3] = (colour[3] ?? 255) * opacity;
      const [one, other] = [luminance(over(colour, below)), luminance(below)];
      const contrast = (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
      const size = parseFloat(style.fontSize);
      const large = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700);
      looked += 1;
      if (contrast < (large ? 3 : 4.5)) {
        faint.push(`${contrast.toFixed(2)} ${element.tagName}.${element.className}: ${text.slice(0, 40)}`);
      }
    }
    return looked > 5 ? faint : ["there is nothing to look at"];
  });
  await page.emulateMedia({ reducedMotion: null });
  return found;
}
