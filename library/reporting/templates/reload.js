// While a run goes on, once a minute; not while something is unfolded, for that may be being read.
if (document.querySelector("[data-running]"))
  setInterval(() => document.querySelector("details[open]") || location.reload(), 60000);
