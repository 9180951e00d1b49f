/** Sign in with a key. A sign-in link does without this page. */
import { errorText, signIn } from "../api.js";
import { fill, h } from "../dom.js";
import { t } from "../text.js";

export function signInPage(main, onSignedIn, problem = null) {
  const key = h("input", { type: "password", name: "key", required: true, autocomplete: "off", spellcheck: false, placeholder: "lamp_…", id: "key" });
  const error = h("p", { class: "error", role: "alert" }, problem ? errorText(problem) : "");
  const button = h("button", { class: "primary" }, t("sign_in"));
  const form = h("form", { class: "panel narrow stack" },
    h("h1", {}, t("sign_in_title")),
    h("p", { class: "soft" }, t("sign_in_hint"), " ", h("code", {}, "lamplighter console")),
    h("label", { for: "key" }, t("api_key")), key, error, button);
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    button.disabled = true;
    try {
      await signIn({ key: key.value.trim() });
      onSignedIn();
    } catch (refusal) {
      error.textContent = errorText(refusal);
      key.select();
    } finally {
      button.disabled = false;
    }
  });
  fill(main, form);
  key.focus();
}
