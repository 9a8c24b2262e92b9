// The page works without this file: it fills in the token of a login link, and
// shows progress without loading the page again.
"use strict";

(function () {
  const login = document.getElementById("login");
  function byLink() {
    if (!login || location.hash.length <= 1) return false;
    const token = decodeURIComponent(location.hash.slice(1));
    history.replaceState(null, "", location.pathname + location.search);
    document.getElementById("token").value = token;
    login.submit();
    return true;
  }
  window.addEventListener("hashchange", byLink); // the link was opened on this very page
  if (byLink()) return;

  const address = document.body.dataset.events;
  if (!address || !window.EventSource) return;

  // One change may bring another: the page is fetched once for all of them.
  let fetching = false, again = false;
  async function renew() {
    if (fetching) { again = true; return; }
    fetching = true;
    try {
      const answer = await fetch(location.href, { headers: { Accept: "text/html" }, redirect: "error" });
      if (!answer.ok) return;
      const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
      const main = document.querySelector("main"), next = fresh.querySelector("main");
      if (!main || !next) return;
      const held = document.activeElement;
      const typing = held && main.contains(held) && /^(INPUT|SELECT|TEXTAREA)$/.test(held.tagName);
      if (typing) return; // nobody is interrupted; the next change comes
      const href = held && main.contains(held) ? held.getAttribute("href") : null;
      main.replaceChildren(...next.childNodes);
      if (href) {
        for (const a of main.querySelectorAll("a")) {
          if (a.getAttribute("href") === href) { a.focus({ preventScroll: true }); break; }
        }
      }
      const bar = document.querySelector("header nav"), bar2 = fresh.querySelector("header nav");
      if (bar && bar2 && !bar.contains(document.activeElement)) bar.replaceChildren(...bar2.childNodes);
      if (!fresh.body.dataset.events) { source.close(); }
    } catch (e) {
      // The host is away: the events begin again when it is back.
    } finally {
      fetching = false;
      if (again) { again = false; setTimeout(renew, 1000); }
    }
  }

  function text(root, name, value) {
    const at = root.querySelector("[data-" + name + "]");
    if (at && at.textContent !== value) at.textContent = value;
  }

  const asked = new Set(); // runs for which the page was fetched
  const source = new EventSource(address);
  source.addEventListener("run", function (event) {
    const run = JSON.parse(event.data);
    let shown = false;
    for (const item of document.querySelectorAll("[data-run]")) {
      if (item.dataset.run !== run.id) continue;
      shown = true;
      text(item, "step", run.step);
      text(item, "progress", run.progress);
      text(item, "took", run.took);
      const bar = item.querySelector("progress");
      if (bar && run.percent >= 0) bar.value = run.percent;
      else if (bar) bar.removeAttribute("value");
    }
    // It began behind the making of this page, and before the events began.
    if (!shown && !asked.has(run.id)) { asked.add(run.id); renew(); }
  });
  source.addEventListener("changed", renew);
  window.addEventListener("pagehide", function () { source.close(); });
})();
