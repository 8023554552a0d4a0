// Keeps the page for offline use: everything it is made of, and what it has asked for beside that.
//
// The network comes first, so that a new version is never hidden by an old one.

const CACHE = "keras-hybrid-browser";
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

self.addEventListener("install", (event) => {
  event.waitUntil(caches.open(CACHE).then((cache) => cache.addAll(FILES)));
});

self.addEventListener("activate", (event) => event.waitUntil(self.clients.claim()));

self.addEventListener("fetch", (event) => {
  if (event.request.method === "GET") event.respondWith(answer(event.request));
});

async function answer(request) {
  const cache = await caches.open(CACHE);
  try {
    const response = await fetch(request);
    if (response.ok) await cache.put(request, response.clone());
    return response;
  } catch (error) {
    const kept = await cache.match(request, { ignoreSearch: true });
    if (kept) return kept;
    throw error;
  }
}
