// For who has to know: the banner of new safeguarding messages, looked up again while a page stays open.
const alarm = document.getElementById("alarm");
let shown = null;  // as it came: the page's own text of it may be spelt otherwise

setInterval(async () => {
  try {
    const reply = await fetch("/safeguarding/alarm", { headers: { Accept: "application/json" } });
    if (!reply.ok) return;
    const html = (await reply.text()).trim();
    if (html !== shown && html !== alarm.innerHTML.trim()) alarm.innerHTML = html;
    shown = html;
  } catch { /* the box cannot be reached: what is shown stays */ }
}, 30_000);
