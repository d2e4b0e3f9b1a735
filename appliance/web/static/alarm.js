// For who has to know: the banner of new safeguarding messages, looked up again while a page stays open.
const alarm = document.getElementById("alarm");

setInterval(async () => {
  try {
    const reply = await fetch("/safeguarding/alarm", { headers: { Accept: "application/json" } });
    const html = reply.ok ? (await reply.text()).trim() : alarm.innerHTML.trim();
    if (html !== alarm.innerHTML.trim()) alarm.innerHTML = html;
  } catch { /* the box cannot be reached: what is shown stays */ }
}, 30_000);
