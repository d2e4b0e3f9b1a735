// The chat page: sends a question, shows the answer while it is written, opens sources beside it.
// The server renders everything; this only puts its pieces in place. Without it the forms and links still work.

const $ = (id) => document.getElementById(id);
const turns = $("turns"), ask = $("ask"), stop = $("stop"), box = $("question"), fault = $("fault");
const spoken = $("spoken"), source = $("source"), wide = matchMedia("(min-width: 60rem)");
const token = ask.elements.csrf.value;
const draft = () => `draft:${ask.elements.conversation.value || "new"}`;
let listening = null;

// --- what is typed is kept: through an error, a reload, a new sign-in ---------------------------------------------
function keep() {
  try { box.value ? sessionStorage.setItem(draft(), box.value) : sessionStorage.removeItem(draft()); } catch { /* private window */ }
}
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
  if (link) note.append(Object.assign(document.createElement("a"), { href: "/", textContent: "Sign in" }));
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
    if (location.pathname !== data.url) {
      history.replaceState(null, "", data.url);
      document.title = document.title.replace(/^.* - /, () => `${data.title} - `);
    }
    for (const list of document.querySelectorAll("[data-chats]")) list.innerHTML = data.chats;
    if ($("left")) $("left").innerHTML = data.left ?? "";
    turns.insertAdjacentHTML("beforeend", data.html);
    follow($(data.turn));
    $(data.turn).previousElementSibling.scrollIntoView({ block: "start" });
  } catch {
    complain("The box cannot be reached.", "Your question is kept; try again in a moment.");
  } finally {
    $("send").disabled = false;
  }
});

stop.addEventListener("submit", (event) => {
  event.preventDefault();
  stop.querySelector("button").disabled = true;
  post(stop.action, {}).catch(() => complain("The box cannot be reached.", "The answer stops by itself soon."));
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
  let said = 0, lost = 0;
  const say = (words) => { if (status.textContent !== words) status.textContent = words; };
  const stream = new EventSource(`/chat/stream/${turn.id}`);
  listening = stream;
  answering(turn);
  text.textContent = "";
  const on = (kind, act) => stream.addEventListener(kind, (event) => { lost = 0; act(JSON.parse(event.data)); });

  on("queue", ({ place, wait }) => {
    const seconds = Math.max(1, Math.round(wait ?? 0));
    const rest = wait ? `, about ${seconds} second${seconds === 1 ? "" : "s"}` : "";
    say(place <= 1 ? `You are next${rest}.` : `You are number ${place} in line${rest}.`);
  });
  on("sources", ({ covered, count }) => {
    say(covered ? `Found ${count} passage${count === 1 ? "" : "s"}. Writing.` : "The documents do not cover this. Writing.");
  });
  on("notice", ({ message }) => {
    lead.before(Object.assign(document.createElement("p"), { className: "note", textContent: message }));
  });
  on("quotes", ({ html }) => {
    lead.innerHTML = html;
    lead.hidden = false;
    own.classList.add("starter");
    own.querySelector(".own-title").hidden = false;
    speak(lead.querySelector(".prose").textContent);
  });
  on("text", ({ delta }) => {
    text.append(delta);
    say("Writing.");
    // A screen reader gets whole sentences, not every word as it drops in.
    const words = text.textContent, end = Math.max(...[". ", "! ", "? ", "\n"].map((mark) => words.lastIndexOf(mark))) + 1;
    if (end > said) { speak(words.slice(said, end)); said = end; }
  });
  on("done", ({ html }) => {
    speak(text.textContent.slice(said));
    finish();
    const keepView = turn.contains(document.activeElement) ? null : document.activeElement;
    turn.outerHTML = html;
    keepView?.focus?.({ preventScroll: true });
  });
  stream.addEventListener("error", () => {
    // The browser comes back by itself, and Last-Event-ID says from where. Give up only where the page is gone for good.
    say("The connection was lost. Trying again.");
    if (stream.readyState === EventSource.CLOSED || ++lost > 20) {
      finish();
      complain("The connection to the box was lost.", "Load the page again: what was written is kept.");
    }
  });
  function finish() {
    stream.close();
    listening = null;
    answering(null);
  }
}

function speak(words) {
  if (words.trim()) spoken.textContent = words.trim();
}

const unfinished = turns.querySelector('[data-state="streaming"]');
if (unfinished) follow(unfinished);
if (!location.hash && turns.querySelectorAll(".asked").length > 1) {
  [...turns.querySelectorAll(".asked")].at(-1).scrollIntoView({ block: "start", behavior: "instant" });
}
addEventListener("pagehide", () => listening?.close());

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
addEventListener("keydown", (event) => { if (event.key === "Escape" && source.open) source.close(); });
source.addEventListener("click", (event) => { if (event.target === source) source.close(); });
source.addEventListener("close", () => {
  document.body.classList.remove("reading");
  for (const other of turns.querySelectorAll("[data-open]")) other.removeAttribute("data-open");
  if (opener?.isConnected) opener.focus({ preventScroll: true });
});
