// Copies what the page needs of the two runtimes from node_modules/ to vendor/.

import { cpSync, rmSync } from "node:fs";

const FILES = {
  "litert/core.js": "@litertjs/core/dist/index.js",
  "litert/wasm-utils.js": "@litertjs/wasm-utils/dist/index.js",
  "litert/litert_wasm_internal.js": "@litertjs/core/wasm/litert_wasm_internal.js",
  "litert/litert_wasm_internal.wasm": "@litertjs/core/wasm/litert_wasm_internal.wasm",
  // For browsers without relaxed SIMD.
  "litert/litert_wasm_compat_internal.js": "@litertjs/core/wasm/litert_wasm_compat_internal.js",
  "litert/litert_wasm_compat_internal.wasm": "@litertjs/core/wasm/litert_wasm_compat_internal.wasm",
  "onnxruntime/ort.wasm.min.mjs": "onnxruntime-web/dist/ort.wasm.min.mjs",
  "onnxruntime/ort-wasm-simd-threaded.mjs": "onnxruntime-web/dist/ort-wasm-simd-threaded.mjs",
  "onnxruntime/ort-wasm-simd-threaded.wasm": "onnxruntime-web/dist/ort-wasm-simd-threaded.wasm",
};

rmSync(new URL("vendor", import.meta.url), { recursive: true, force: true });
for (const [target, source] of Object.entries(FILES)) {
  cpSync(
    new URL(`node_modules/${source}`, import.meta.url),
    new URL(`vendor/${target}`, import.meta.url),
  );
}
