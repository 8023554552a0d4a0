// Keeps the page for offline use: the files it is made of, and nothing else of this address. A model
// or detector named in the address is kept by the page itself (src/main.js).
//
// The network comes first, so that a new version is never hidden by an old one.

const CACHE = "keras-hybrid-browser-files";
const FILES = [
  "./",
  "style.css",
  "src/alignment.js",
  "src/detector.js",
  "src/main.js",
  "src/metadata.js",
  "src/model.js",
  "src/photograph.js",
  "vendor/litert/core.js",
  "vendor/litert/wasm-utils.js",
  "vendor/litert/litert_wasm_internal.js",
  "vendor/litert/litert_wasm_internal.wasm",
  "vendor/litert/litert_wasm_compat_internal.js",
  "vendor/litert/litert_wasm_compat_internal.wasm",
  "vendor/onnxruntime/ort.wasm.min.mjs",
  "vendor/onnxruntime/ort-wasm-simd-threaded.mjs",
  "vendor/onnxruntime/ort-wasm-simd-threaded.wasm",
];
const ADDRESSES = new Set(FILES.map((file) => new URL(file, self.location).href));

self.addEventListener("install", (event) => {
  self.skipWaiting();
  event.waitUntil(Promise.all(FILES.map(keep)));
});

self.addEventListener("activate", (event) => {
  // Former versions kept whatever this address answered, other programs' answers included.
  event.waitUntil(caches.delete("keras-hybrid-browser").then(() => self.clients.claim()));
});

self.addEventListener("fetch", (event) => {
  const address = addressOf(event.request);
  // Other programs may answer at this address too: what is theirs goes to the network untouched.
  if (ADDRESSES.has(address)) event.respondWith(answer(event.request, address));
});

async function keep(file) {
  const response = await fetch(file);
  if (!mayBeKept(response)) throw new Error(`${file} may not be kept.`);
  await (await caches.open(CACHE)).put(file, response);
}

/** What a file is kept under: one entry, whatever is asked for behind the question mark. */
function addressOf({ method, url }) {
  const { origin, pathname } = new URL(url);
  return method === "GET" ? origin + pathname.replace(/\/index\.html$/, "/") : null;
}

function mayBeKept(response) {
  return response.ok && !/\bno-store\b/i.test(response.headers.get("Cache-Control") ?? "");
}

async function answer(request, address) {
  const cache = await caches.open(CACHE);
  try {
    const response = await fetch(request);
    // A full disk must not cost the answer.
    if (mayBeKept(response)) await cache.put(address, response.clone()).catch(() => {});
    return response;
  } catch (error) {
    const kept = await cache.match(address);
    if (kept) return kept;
    throw error;
  }
}
