// How a text that is searched for may be written where it is looked for: errors are plain text, payloads JSON text.

/** Patterns for `like`, any of which finds the text. */
export function searchPatterns(text: string): string[] {
  // As JSON.stringify writes it, and as the JSON of other languages does that SQL may have stored.
  const json = JSON.stringify(text).slice(1, -1);
  const ascii = json.replace(/[^\x20-\x7e]/g, escapedUnit);
  const spellings = new Set([text, json, ascii, json.replaceAll('/', '\\/'), ascii.replaceAll('/', '\\/')]);
  return [...spellings].map((spelling) => `%${spelling.replace(/[\\%_]/g, '\\$&')}%`);
}

const escapedUnit = (unit: string): string => `\\u${unit.charCodeAt(0).toString(16).padStart(4, '0')}`;
