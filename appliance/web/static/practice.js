// A rehearsed lesson: measures the silence before the teacher speaks, sends their words without loading the whole page, and keeps
// what was typed. The server renders everything; without this the forms work as they are.

const $ = (id) => document.getElementById(id);
const WORDS_A_SECOND = 4;  // of reading: only what is left after it is silence
let since = performance.now(), silence = null, sending = false;

const lesson = () => $("lesson");
const mine = () => `lesson:${lesson().dataset.me}:`, draft = () => mine() + lesson().dataset.id;

function keep() {
  try { $("words").value ? sessionStorage.setItem(draft(), $("words").value) : sessionStorage.removeItem(draft()); } catch { /* private window */ }
}

function begin() {
  since = performance.now();
  silence = null;
  try {
    for (const key of Object.keys(sessionStorage)) if (key.startsWith("lesson:") && !key.startsWith(mine())) sessionStorage.removeItem(key);
    if (!$("words").value) $("words").value = sessionStorage.getItem(draft()) ?? "";
  } catch { /* private window */ }
  tick();
}

function heard() {
  const last = document.querySelector("[data-last]") ?? document.querySelector(".opening");
  const words = [...last.querySelectorAll(".beat")].map((one) => one.textContent).join(" ") || last.textContent;
  return words.split(/\s+/).filter(Boolean).length;
}

document.addEventListener("input", (event) => {
  if (event.target.id !== "words") return;
  silence ??= Math.max(0, (performance.now() - since) / 1000 - heard() / WORDS_A_SECOND);
  keep();
});
document.addEventListener("keydown", (event) => {
  if (event.target.id !== "words" || event.key !== "Enter" || !(event.ctrlKey || event.metaKey) || event.isComposing) return;
  event.preventDefault();
  $("speak").requestSubmit();
});

document.addEventListener("submit", async (event) => {
  if (event.target.id !== "speak") return;
  event.preventDefault();
  if (sending) return;
  const form = event.target, button = form.querySelector("button.main"), status = $("status");
  form.elements.waited.value = silence === null ? "" : silence.toFixed(1);
  sending = button.disabled = true;
  status.textContent = lesson().dataset.thinking;
  try {
    const reply = await fetch(form.action, { method: "POST", body: new URLSearchParams(new FormData(form)), headers: { Accept: "text/html" } });
    const page = new DOMParser().parseFromString(await reply.text(), "text/html"), room = page.getElementById("lesson");
    if (reply.ok) try { sessionStorage.removeItem(draft()); } catch { /* private window */ }
    if (room) {
      const setting = document.querySelector(".setting").open && !reply.ok;
      lesson().replaceWith(document.adoptNode(room));
      document.querySelector(".setting").open = setting;
      begin();
      $("words").focus({ preventScroll: true });
      if (reply.ok) document.querySelector("[data-last]")?.scrollIntoView({ block: "start" });
      say();
      return;
    }
    if (reply.ok) { location.assign(reply.url); return; }
    // The lesson is over, or the sign-in is: that page says so, and has the words.
    document.body.replaceWith(document.adoptNode(page.body));
  } catch {
    status.textContent = lesson().dataset.away;
  } finally {
    sending = button.disabled = false;
  }
});

// A screen reader hears what the pupils said, not the whole page again.
function say() {
  const lines = [...document.querySelectorAll("[data-last] .beat")].map((one) => one.textContent.trim().replace(/\s+/g, " "));
  if (!$("fault").textContent.trim()) $("spoken").textContent = lines.join(" ");
}

function tick() {
  const left = document.querySelector(".left"), words = lesson()?.dataset;
  if (!left || !words) return;
  const minutes = Math.round((left.dataset.until * 1000 - Date.now()) / 60000);
  left.textContent = minutes < 1 && left.dataset.until * 1000 < Date.now() ? words.over : minutes === 1 ? words.minute : words.minutes.replace("{n}", Math.max(0, minutes));
}
setInterval(tick, 20000);

begin();
if (!location.hash || location.hash === "#now") document.querySelector("[data-last]")?.scrollIntoView({ block: "start", behavior: "instant" });
