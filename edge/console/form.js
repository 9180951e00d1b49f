/**
 * A form from the JSON Schema of an endpoint's input: one control for each property.
 *
 * @module
 */
import { client, errorText } from "./api.js";
import { dropFile, keepFile, keptFile, uploadStore } from "./drafts.js";
import { fill, h } from "./dom.js";
import { bytes } from "./format.js";
import { player } from "./pages/job.js";
import { fileChooser, uploadProgress } from "./parts.js";
import { canRecord, record } from "./recorder.js";
import { language, t } from "./text.js";

/** The title of a property, in the language of the page where the schema has it. */
function titleOf(name, schema) {
  return schema[`title_${language()}`] || schema.title || name;
}

/** The description in the language of the page, or the English one. The edge answers an empty text for a missing one. */
export function descriptionOf(schema) {
  return schema[`description_${language()}`] || schema.description || "";
}

/**
 * Return `{element, value(), isReady(), restore(value)}` for one property. `value()` is undefined for an empty field.
 * `changed`: called after every change.
 */
export function fieldFor(name, schema, isRequired, place, changed) {
  const id = `field-${name}`, description = descriptionOf(schema);
  if (schema.type === "string" && schema.format === "asset") return new FileField(name, schema, isRequired, place, changed);
  const control = controlFor(schema, isRequired, id);
  control.id = id;
  control.name = name;
  control.setAttribute("aria-describedby", `${id}-hint`);
  control.addEventListener("input", changed);
  const label = h("label", { for: id }, titleOf(name, schema), isRequired && h("span", { class: "soft" }, ` ${t("required")}`));
  const element = h("div", { class: "field" }, label, control, h("p", { class: "hint soft", id: `${id}-hint` }, description));
  return { name, element, isReady: () => true, value: () => readControl(control, schema), restore: (value) => writeControl(control, schema, value) };
}

function controlFor(schema, isRequired, id) {
  if (schema.enum) {
    const empty = isRequired && schema.default !== undefined ? [] : [h("option", { value: "" }, schema.default === undefined ? "" : t("default_value", { value: String(schema.default) }))];
    return h("select", { required: isRequired }, empty, schema.enum.map((value) => h("option", { value: JSON.stringify(value) }, String(value))));
  }
  if (schema.type === "boolean") return h("input", { type: "checkbox", checked: schema.default === true });
  if (schema.type === "integer" || schema.type === "number") {
    const step = schema.type === "integer" ? "1" : "any";
    return h("input", { type: "number", required: isRequired, min: schema.minimum ?? "", max: schema.maximum ?? "", step, placeholder: schema.default ?? "", inputMode: "decimal" });
  }
  if (schema.type === "string") {
    if ((schema.maxLength ?? 1000) > 200) return h("textarea", { required: isRequired, rows: 2, maxLength: schema.maxLength, placeholder: schema.default ?? "" });
    return h("input", { required: isRequired, maxLength: schema.maxLength, placeholder: schema.default ?? "" });
  }
  return h("textarea", { required: isRequired, rows: 3, placeholder: "{ }", spellcheck: false, class: "mono", "data-json": id });
}

function readControl(control, schema) {
  if (control.type === "checkbox") return control.checked === (schema.default ?? false) ? undefined : control.checked;
  if (control.value === "") return undefined;
  if (schema.enum) return JSON.parse(control.value);
  if (schema.type === "integer" || schema.type === "number") return Number(control.value);
  if (schema.type === "string") return control.value;
  try {
    control.setCustomValidity("");
    return JSON.parse(control.value);
  } catch (error) {
    control.setCustomValidity(`JSON: ${error.message}`);
    return undefined;
  }
}

function writeControl(control, schema, value) {
  if (control.type === "checkbox") control.checked = value ?? schema.default ?? false;
  else if (value === undefined || value === null) control.value = "";
  else if (schema.enum || (schema.type !== "string" && typeof value === "object")) control.value = JSON.stringify(value);
  else control.value = String(value);
}

/** A file: dropped, chosen or taken with the camera; shown and hashed at once, and sent after the submit. */
class FileField {
  constructor(name, schema, isRequired, place, changed) {
    Object.assign(this, { name, schema, isRequired, changed, digest: null, stop: null, place: `${place}:${name}` });
    const words = `${name} ${descriptionOf(schema)}`.toLowerCase(), id = `field-${name}`;
    const kind = /audio|speech|voice|sound|wav/.test(name.toLowerCase()) ? "audio" : /video|film|face/.test(words) ? "video" : "";
    this.input = h("input", { type: "file", id, accept: kind === "audio" ? "audio/*,video/*" : kind === "video" ? "video/*,image/*" : "" });
    this.input.addEventListener("change", () => this.input.files[0] && this.take(this.input.files[0]));
    this.camera = kind === "" ? null : h("input", { type: "file", accept: `${kind}/*`, capture: kind === "video" ? "user" : "microphone", hidden: true });
    this.camera?.addEventListener("change", () => this.camera.files[0] && this.take(this.camera.files[0]));
    this.chosen = h("span", { class: "soft" }, t("no_file"));
    this.preview = h("div", { class: "preview" });
    this.status = h("div", { class: "upload", role: "status" });
    this.drop = h("div", { class: "drop" }, this.preview, h("div", { class: "buttons" }, fileChooser(this.input, this.chosen), this.camera && h("label", { class: "button phone-only" }, this.camera, t(kind === "video" ? "take_video" : "take_audio")),
      this.camera && canRecord() && h("button", { type: "button", class: "desk-only", onclick: () => this.recordWith(kind) }, t(kind === "video" ? "take_video" : "take_audio"))), this.status);
    this.element = h("div", { class: "field" }, h("label", { for: id }, titleOf(name, schema), isRequired && h("span", { class: "soft" }, ` ${t("required")}`)), this.drop, h("p", { class: "hint soft" }, descriptionOf(schema)));
    for (const kind of ["dragenter", "dragover"]) this.drop.addEventListener(kind, (event) => (event.preventDefault(), this.drop.classList.add("over")));
    for (const kind of ["dragleave", "drop"]) this.drop.addEventListener(kind, () => this.drop.classList.remove("over"));
    this.drop.addEventListener("drop", (event) => {
      event.preventDefault();
      if (event.dataTransfer.files[0]) this.take(event.dataTransfer.files[0]);
    });
  }

  async recordWith(kind) {
    try {
      const file = await record(kind);
      if (file) this.take(file);
    } catch (error) {
      fill(this.status, h("p", { class: "error", role: "alert" }, t("no_camera", { reason: error.message })));
    }
  }

  /** Whether the field does not hold up a submit. */
  isReady() {
    return this.digest !== null || (!this.file && !this.isRequired);
  }

  value() {
    return this.digest ?? undefined;
  }

  /** Take over a digest of an earlier job, or the file that was being uploaded when the page was left. */
  async restore(value) {
    if (typeof value === "string" && value.startsWith("sha256:")) {
      this.digest = value;
      fill(this.status, t("file_of_job"));
      fill(this.chosen);
      this.changed();
    } else if (value === undefined) {
      this.clear();
    }
  }

  async resume() {
    const file = await keptFile(this.place);
    if (file && !this.file && !this.digest) this.take(file);
  }

  clear() {
    this.stop?.abort();
    Object.assign(this, { file: null, digest: null });
    if (this.url) URL.revokeObjectURL(this.url);
    this.input.value = "";
    dropFile(this.place);
    fill(this.preview);
    fill(this.status);
    fill(this.chosen, t("no_file"));
    this.changed();
  }

  async take(file) {
    this.stop?.abort();
    const stop = (this.stop = new AbortController());
    Object.assign(this, { file, digest: null });
    if (this.url) URL.revokeObjectURL(this.url);
    this.url = URL.createObjectURL(file);
    fill(this.chosen, file.name);
    fill(this.preview, player(this.url, file.type, file.name));
    keepFile(this.place, file);
    this.changed();
    const { signal } = stop;
    try {
      const digest = await client().digest(file, { signal, store: uploadStore, onProgress: (progress) => this.show(uploadProgress(progress)) });
      const { missing } = await client().request("POST", "/v1/assets/check", { json: { digests: [digest] }, signal, retry: true });
      if (signal.aborted) return;
      this.digest = digest;
      this.show(h("p", { class: "num" }, t(missing.length ? "sent_after_submit" : "already_there", { size: bytes(file.size) })));
    } catch (error) {
      if (signal.aborted) return;
      fill(this.status, h("p", { class: "error", role: "alert" }, errorText(error)), h("button", { type: "button", onclick: () => this.take(file) }, t("try_again")));
    }
    this.changed();
  }

  show(content) {
    fill(this.status, content, h("button", { type: "button", class: "quiet", onclick: () => this.clear() }, t("remove")));
  }
}
