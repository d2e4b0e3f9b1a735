// Shows how far files are on their way to the box. Without this the form is sent all the same.

const form = document.getElementById("upload"), bar = document.getElementById("sent"), said = document.getElementById("sending");

form.addEventListener("submit", (event) => {
  event.preventDefault();
  const sending = new XMLHttpRequest(), button = form.querySelector("button");
  const end = (message, hint) => {
    bar.hidden = true;
    button.disabled = false;
    said.textContent = "";
    const note = document.createElement("div"), strong = document.createElement("strong");
    note.className = "fault";
    note.setAttribute("role", "alert");
    strong.textContent = message;
    note.append(strong, ` ${hint ?? ""}`);
    document.getElementById("fault").replaceChildren(note);
    note.scrollIntoView({ block: "center" });
  };
  sending.upload.addEventListener("progress", ({ loaded, total }) => {
    bar.value = total ? loaded / total : 0;
    said.textContent = form.dataset.sending.replace("{}", `${Math.round(bar.value * 100)} %`);
  });
  sending.addEventListener("load", () => {
    const reply = (() => { try { return JSON.parse(sending.responseText); } catch { return {}; } })();
    if (sending.status === 200 && reply.url) location.assign(reply.url);
    else end(reply.error?.message ?? form.dataset.lost, reply.error?.hint);
  });
  sending.addEventListener("error", () => end(form.dataset.lost));
  sending.open("POST", form.action);
  sending.setRequestHeader("Accept", "application/json");
  sending.setRequestHeader("X-CSRF-Token", form.elements.csrf.value);
  sending.send(new FormData(form));
  button.disabled = true;
  bar.hidden = false;
});
