// Reads the page again while the run goes on, keeping the place and what was opened.
addEventListener("DOMContentLoaded", () => {
  const key = "pyengine " + location.pathname;
  const opened = () => [...document.querySelectorAll("details")];
  try {
    const kept = JSON.parse(sessionStorage.getItem(key) || "null");
    if (kept) {
      opened().forEach((d) => { if (kept.open.includes(d.id)) d.open = true; });
      scrollTo(0, kept.y);
    }
  } catch (e) { /* no storage: start at the top */ }
  setInterval(() => {
    if (document.hidden || String(getSelection())) return;
    try {
      const open = opened().filter((d) => d.open && d.id).map((d) => d.id);
      sessionStorage.setItem(key, JSON.stringify({ y: scrollY, open: open }));
    } catch (e) { /* no storage */ }
    location.reload();
  }, 10000);
});
