// The chat page: sends a question, shows the answer while it is written, opens sources beside it.
// The server renders everything; this only puts its pieces in place. Without it the forms and links still work.

const $ = (id) => document.getElementById(id);
const turns = $("turns"), ask = $("ask"), stop = $("stop"), box = $("question"), fault = $("fault");
const spoken = $("spoken"), source = $("source"), wide = matchMedia("(min-width: 60rem)");
const words = spoken.dataset;  // the sentences that this file says, in the reader's language
document.documentElement.classList.add("scripted");
const token = ask.elements.csrf.value;
const mine = `draft:${ask.dataset.me}:`, draft = () => mine + (ask.elements.conversation.value || "new");
let listening = null;

// --- what is typed is kept: through an error, a reload, a new sign-in ---------------------------------------------
function keep() {
  try { box.value ? sessionStorage.setItem(draft(), box.value) : sessionStorage.removeItem(draft()); } catch { /* private window */ }
}
try {
  // Who sits here next must not find what the one before began to write.
  for (const key of Object.keys(sessionStorage)) if (key.startsWith("draft:") && !key.startsWith(mine)) sessionStorage.removeItem(key);
} catch { /* private window */ }
try { if (!box.value) box.value = sessionStorage.getItem(draft()) ?? ""; } catch { /* private window */ }
box.addEventListener("input", keep);
box.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  if (!listening) ask.requestSubmit();
});

function post(url, form) {
  return fetch(url, { method: "POST", body: new URLSearchParams(form), headers: { Accept: "application/json", "X-CSRF-Token": token } });
}

function complain(message, hint, link) {
  const note = document.createElement("div");
  note.className = "fault";
  note.setAttribute("role", "alert");
  const strong = document.createElement("strong");
  strong.textContent = message;
  note.append(strong, ` ${hint ?? ""} `);
  if (link) note.append(Object.assign(document.createElement("a"), { href: "/", textContent: words.signIn }));
  fault.replaceChildren(note);
}

// --- asking -------------------------------------------------------------------------------------------------------
ask.addEventListener("submit", async (event) => {
  event.preventDefault();
  if (!box.value.trim() || listening) return;
  $("send").disabled = true;
  fault.replaceChildren();
  try {
    const reply = await post(ask.action, new FormData(ask));
    const data = await reply.json();
    if (!reply.ok) {
      complain(data.error.message, data.error.hint, reply.status === 401);
      return;
    }
    box.value = "";
    keep();
    $("welcome")?.remove();
    ask.elements.conversation.value = data.url.split("/").pop();
    ask.elements.shown.value = data.turn;
    if (location.pathname !== data.url) {
      history.replaceState(null, "", data.url);
      document.title = document.title.replace(/^.* - /, () => `${data.title} - `);
      $("where").textContent = data.title;
    }
    for (const list of document.querySelectorAll("[data-chats]")) list.innerHTML = data.chats;
    if ($("left")) $("left").innerHTML = data.left ?? "";
    turns.insertAdjacentHTML("beforeend", data.html);
    follow($(data.turn));
    $(data.question).scrollIntoView({ block: "start" });
  } catch {
    complain(words.away, words.awayHint);
  } finally {
    $("send").disabled = false;
  }
});

stop.addEventListener("submit", (event) => {
  event.preventDefault();
  stop.querySelector("button").disabled = true;
  post(stop.action, {}).catch(() => complain(words.away, words.stopHint));
});

function answering(turn) {
  const focused = document.activeElement === $("send") || stop.contains(document.activeElement);
  stop.hidden = !turn;
  $("send").hidden = Boolean(turn);
  stop.querySelector("button").disabled = false;
  if (turn) stop.action = `/chat/stop/${turn.id}`;
  if (focused) (turn ? stop.querySelector("button") : box).focus();
}

// --- the answer while it is written -------------------------------------------------------------------------------
function follow(turn) {
  const status = turn.querySelector(".status"), lead = turn.querySelector(".lead");
  const own = turn.querySelector(".own"), text = turn.querySelector(".writing");
  let last = -1, lost = 0, unsaid = "", again = 0;
  const say = (sentence) => { if (status.textContent !== sentence) status.textContent = sentence; };
  const acts = {
    queue: (data) => say(data.words),
    sources: (data) => say(data.words),
    saving: (data) => say(data.words),
    notice({ message }) {
      lead.before(Object.assign(document.createElement("p"), { className: "note", textContent: message }));
    },
    opening({ message }) {
      turn.querySelector(".preface")?.remove();
      lead.before(Object.assign(document.createElement("p"), { className: "preface", textContent: message }));
      speak(message);
    },
    quotes({ html }) {
      lead.innerHTML = html;
      lead.hidden = false;
      own.classList.add("starter");
      own.querySelector(".own-title").hidden = false;
      speak(lead.querySelector(".prose")?.textContent ?? "");
    },
    text({ delta }) {
      text.append(delta);
      say(words.writing);
      // A screen reader gets whole sentences, not every word as it drops in.
      unsaid += delta;
      const end = Math.max(...[". ", "! ", "? ", "؟ ", "\n"].map((mark) => unsaid.lastIndexOf(mark))) + 1;
      if (end) { speak(unsaid.slice(0, end)); unsaid = unsaid.slice(end); }
    },
    done({ html }) {
      speak(unsaid);
      finish();
      const keepView = turn.contains(document.activeElement) ? null : document.activeElement;
      turn.outerHTML = html;
      keepView?.focus?.({ preventScroll: true });
    },
  };
  text.textContent = "";
  open();
  answering(turn);

  function open() {
    const stream = listening = new EventSource(`/chat/stream/${turn.id}${last < 0 ? "" : `?after=${last}`}`);
    for (const [kind, act] of Object.entries(acts)) {
      stream.addEventListener(kind, (event) => { lost = 0; last = event.lastEventId; act(JSON.parse(event.data)); });
    }
    stream.addEventListener("error", () => {
      // The browser comes back by itself, and Last-Event-ID says from where; after a refusal it does not, and we do.
      say(words.lost);
      if (++lost > 30) {
        finish();
        complain(words.gone, words.goneHint);
      } else if (stream.readyState === EventSource.CLOSED) {
        again = setTimeout(open, 2000);
      }
    });
  }
  function finish() {
    clearTimeout(again);
    listening.close();
    listening = null;
    answering(null);
  }
}

function speak(sentence) {
  if (sentence.trim()) spoken.textContent = sentence.trim();
}

function followUnfinished() {
  const unfinished = turns.querySelector('[data-state="streaming"]');
  if (unfinished) follow(unfinished);
}
followUnfinished();
if (!location.hash && turns.querySelectorAll(".asked").length > 1) {
  [...turns.querySelectorAll(".asked")].at(-1).scrollIntoView({ block: "start", behavior: "instant" });
}
addEventListener("pagehide", () => listening?.close());

// Who comes back to this tab sees what was asked in another one.
document.addEventListener("visibilitychange", async () => {
  if (document.hidden || listening || !ask.elements.conversation.value || location.search || turns.querySelector("details[open]")) return;
  try {
    const reply = await fetch(location.pathname, { headers: { Accept: "text/html" } });
    if (!reply.ok || reply.redirected || listening) return;
    const now = new DOMParser().parseFromString(await reply.text(), "text/html");
    const shown = now.querySelector("#ask [name=shown]").value;
    if (shown === ask.elements.shown.value) return;
    ask.elements.shown.value = shown;
    turns.replaceChildren(...now.getElementById("turns").childNodes);
    followUnfinished();
  } catch { /* not now: the next question catches up as well */ }
});

// --- feedback: the form comes back as it stands now ---------------------------------------------------------------
turns.addEventListener("submit", async (event) => {
  const form = event.target, by = event.submitter;
  if (!form.matches(".feedback")) return;
  event.preventDefault();
  const body = new FormData(form), at = [...form.querySelectorAll("button")].indexOf(by);
  if (by?.name) body.append(by.name, by.value);
  try {
    const reply = await post(form.action, body);
    const data = await reply.json();
    if (!reply.ok) { complain(data.error.message, data.error.hint, reply.status === 401); return; }
    fault.replaceChildren();
    const wasOpen = form.querySelector("details").open && by?.name === "rating";
    form.outerHTML = data.html;
    const now = $(form.id), details = now.querySelector("details");
    details.open ||= wasOpen;
    (by?.name === "rating" ? now.querySelectorAll("button")[at] : details.querySelector("summary")).focus({ preventScroll: true });
    speak(now.querySelector("[role=status]").textContent);
  } catch {
    complain(words.away, words.awayHint);
  }
});
turns.addEventListener("click", (event) => { if (event.target.closest("[data-print]")) print(); });

// --- sources: beside the chat on a laptop, a sheet on a phone -----------------------------------------------------
let opener = null;
turns.addEventListener("click", async (event) => {
  const link = event.target.closest("a[data-passage]");
  if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  try {
    const reply = await fetch(`/passage/${link.dataset.passage}?part=1`, { headers: { Accept: "application/json" } });
    if (!reply.ok) throw new Error("refused");
    $("source-body").innerHTML = await reply.text();
  } catch {
    location.assign(link.href);
    return;
  }
  opener = link;
  for (const other of turns.querySelectorAll("[data-open]")) other.removeAttribute("data-open");
  for (const same of link.closest(".turn").querySelectorAll(`[data-passage="${link.dataset.passage}"]`)) same.dataset.open = "";
  if (!source.open) wide.matches ? source.show() : source.showModal();
  document.body.classList.add("reading");
  $("close").focus({ preventScroll: true });
  const here = source.querySelector(".here");
  $("source-body").scrollTop = here.offsetTop - $("source-body").offsetTop - source.querySelector(".from").offsetHeight - 16;
});
$("close").addEventListener("click", () => source.close());
addEventListener("keydown", (event) => {
  if (event.key !== "Escape") return;
  if (source.open) source.close();
  const menu = document.querySelector(".more[open]");
  if (menu) { menu.open = false; menu.querySelector("summary").focus(); }
});
source.addEventListener("click", (event) => { if (event.target === source) source.close(); });
source.addEventListener("close", () => {
  document.body.classList.remove("reading");
  for (const other of turns.querySelectorAll("[data-open]")) other.removeAttribute("data-open");
  if (opener?.isConnected) opener.focus({ preventScroll: true });
});
