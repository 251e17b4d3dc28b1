// JSON from files that readers bring.
import { LabError } from "../errors.js";

// The object in `text`, a string or an ArrayBuffer. Throws LabError, with the file's name, if there is none.
export function jsonOf(text, file) {
  let value;
  try {
    value = JSON.parse(
      typeof text === "string" ? text : new TextDecoder("utf-8", { fatal: true }).decode(text),
    );
  } catch {
    throw new LabError(`${file} is not JSON.`);
  }
  if (value === null || typeof value !== "object" || Array.isArray(value)) {
    throw new LabError(`${file} does not contain a JSON object.`);
  }
  return value;
}
