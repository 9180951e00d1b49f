/**
 * Record a video or a voice with the camera and microphone of this computer. A phone has its own program for that.
 *
 * @module
 */
import { fill, h } from "./dom.js";
import { duration } from "./format.js";
import { t } from "./text.js";

/** Whether this page may ask for a camera: browsers allow it over HTTPS and on localhost only. */
export const canRecord = () => Boolean(navigator.mediaDevices?.getUserMedia && globalThis.MediaRecorder);

/**
 * Record in a dialog; return the file, or null when it was closed. `kind`: `video` or `audio`.
 * Throws the DOMException of a camera that is missing or not allowed.
 */
export async function record(kind) {
  const stream = await navigator.mediaDevices.getUserMedia({ audio: true, video: kind === "video" });
  const recorder = new MediaRecorder(stream), pieces = [];
  recorder.addEventListener("dataavailable", (event) => pieces.push(event.data));
  const state = h("p", { class: "num", role: "status" }, t("recording_ready"));
  const start = h("button", { type: "button", class: "primary", onclick: begin }, t("recording_start"));
  const use = h("button", { type: "button", class: "primary", hidden: true, onclick: () => dialog.close("use") }, t("recording_use"));
  const dialog = h("dialog", { "aria-labelledby": "recorder-title" }, h("div", { class: "stack" },
    h("h2", { id: "recorder-title" }, t(kind === "video" ? "take_video" : "take_audio")),
    kind === "video" && h("video", { srcObject: stream, autoplay: true, muted: true, playsInline: true, "aria-label": t("camera") }), state,
    h("div", { class: "buttons" }, h("button", { type: "button", onclick: () => dialog.close() }, t("back")), start, use)));
  let timer = 0;

  function begin() {
    const startedAt = performance.now(), show = () => fill(state, t("recording_now", { time: duration((performance.now() - startedAt) / 1000) }));
    recorder.start();
    show();
    timer = setInterval(show, 500);
    start.hidden = true;
    use.hidden = false;
    use.focus();
  }

  const closed = new Promise((resolve) => dialog.addEventListener("close", resolve));
  document.body.append(dialog);
  dialog.showModal();
  await closed;
  clearInterval(timer);
  if (recorder.state !== "inactive") {
    const stopped = new Promise((resolve) => recorder.addEventListener("stop", resolve));
    recorder.stop();
    await stopped;
  }
  for (const track of stream.getTracks()) track.stop();
  dialog.remove();
  if (dialog.returnValue !== "use") return null;
  const type = recorder.mimeType.split(";")[0];
  return new File(pieces, `recording.${type.split("/")[1]}`, { type });
}
