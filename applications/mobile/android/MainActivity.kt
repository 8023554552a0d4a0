// Not compiled here: see README.md.

package com.example.keras_hybrid

import android.app.Activity
import android.graphics.BitmapFactory
import android.os.Bundle
import android.util.Log

/** Prints the embedding of the aligned crop `crop.png` among the assets: `adb logcat -s FaceEmbedder`. */
class MainActivity : Activity() {
    override fun onCreate(savedInstanceState: Bundle?) {
        super.onCreate(savedInstanceState)
        val crop = assets.open("crop.png").use { BitmapFactory.decodeStream(it) }
        FaceEmbedder(assets).use { embedder ->
            // A log entry is cut off after some 4,000 bytes.
            for (numbers in embedder.embed(crop).toList().chunked(64)) {
                Log.i("FaceEmbedder", numbers.joinToString())
            }
        }
    }
}
