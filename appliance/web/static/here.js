// A class's page: who is here, looked up again while a lesson is open and the page is looked at. A reload shows the same.
const here = document.getElementById("here");
let shown = null;  // as it came: the page's own text of it may be spelt otherwise

setInterval(async () => {
  if (document.hidden) return;
  try {
    const reply = await fetch(here.dataset.from, { headers: { Accept: "application/json" } });
    if (!reply.ok) return;
    const html = (await reply.text()).trim();
    if (html !== shown && html !== here.innerHTML.trim()) here.innerHTML = html;
    shown = html;
  } catch { /* the box cannot be reached: what is shown stays */ }
}, Number(here.dataset.every) * 1000);
