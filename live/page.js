"use strict";
{
  const every = 2000, button = document.getElementById("pause"), stale = document.getElementById("stale");
  let paused = false;

  const bring = (old, now) => {
    if (old.nodeType !== now.nodeType || old.nodeName !== now.nodeName) {
      old.replaceWith(document.importNode(now, true));
      return;
    }
    if (old.nodeType !== Node.ELEMENT_NODE) {
      if (old.data !== now.data) old.data = now.data;
      return;
    }
    for (const a of [...old.attributes]) if (!now.hasAttribute(a.name)) old.removeAttribute(a.name);
    for (const a of now.attributes) if (old.getAttribute(a.name) !== a.value) old.setAttribute(a.name, a.value);
    const was = [...old.childNodes], is = [...now.childNodes];
    is.forEach((node, i) => i < was.length ? bring(was[i], node) : old.append(document.importNode(node, true)));
    was.slice(is.length).forEach((node) => node.remove());
  };

  const ask = async () => {
    if (!paused && !document.hidden) {
      try {
        const answer = await fetch(location.pathname, { signal: AbortSignal.timeout(10000), cache: "no-store" });
        if (!answer.ok) throw new Error(answer.statusText);
        const page = new DOMParser().parseFromString(await answer.text(), "text/html");
        bring(document.getElementById("live"), page.getElementById("live"));
        document.title = page.title;
        stale.hidden = true;
      } catch {
        stale.hidden = false;
      }
    }
    setTimeout(ask, every);
  };

  const pause = () => {
    paused = !paused;
    button.setAttribute("aria-pressed", String(paused));
    button.textContent = paused ? "Go on" : "Pause";
  };
  button.hidden = false;
  button.addEventListener("click", pause);
  document.addEventListener("keydown", (e) => {
    if (e.key === "p" && !e.ctrlKey && !e.metaKey && !e.altKey) pause();
  });
  setTimeout(ask, every);
}
