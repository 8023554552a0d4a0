// Not compiled here: see README.md.

package com.example.keras_hybrid

import android.content.res.AssetManager
import android.graphics.Bitmap
import com.google.ai.edge.litert.Accelerator
import com.google.ai.edge.litert.CompiledModel

/**
 * A face model that `keras-hybrid export --to litert --output embedding` wrote.
 *
 * The file takes float32 RGB in [0, 255] and normalises it itself.
 *
 * @param assets Where the file lies.
 * @param fileName Its name among the assets.
 * @param size Side of the aligned crops that the model takes, in pixels.
 */
class FaceEmbedder(
    assets: AssetManager,
    fileName: String = "face.tflite",
    private val size: Int = 112
) : AutoCloseable {
    private val model =
        CompiledModel.create(assets, fileName, CompiledModel.Options(Accelerator.CPU))
    private val input = model.createInputBuffer(INPUT, SIGNATURE)
    private val output = model.createOutputBuffer(OUTPUT, SIGNATURE)

    /** The embedding, of length 1, of a crop that is aligned by five landmarks. */
    fun embed(crop: Bitmap): FloatArray {
        require(crop.width == size && crop.height == size) {
            "The crop must be $size×$size, it is ${crop.width}×${crop.height}."
        }
        val colors = IntArray(size * size)
        crop.getPixels(colors, 0, size, 0, 0, size, size)
        val image = FloatArray(colors.size * 3)
        colors.forEachIndexed { index, color ->
            image[3 * index] = (color shr 16 and 0xFF).toFloat()
            image[3 * index + 1] = (color shr 8 and 0xFF).toFloat()
            image[3 * index + 2] = (color and 0xFF).toFloat()
        }
        input.writeFloat(image)
        model.run(mapOf(INPUT to input), mapOf(OUTPUT to output), SIGNATURE)
        return output.readFloat()
    }

    override fun close() {
        input.close()
        output.close()
        model.close()
    }

    private companion object {
        const val SIGNATURE = "serving_default"
        const val INPUT = "image"
        const val OUTPUT = "embedding"
    }
}
