// Not compiled here: see README.md.

import CoreGraphics
import Foundation
import LiteRT

/// A face model that `keras-hybrid export --to litert --output embedding` wrote.
///
/// The file takes float32 RGB in [0, 255] and normalises it itself.
final class FaceEmbedder {
  enum Failure: Error {
    case otherTensors(input: String, output: String)
    case cropSize(width: Int, height: Int)
  }

  private static let inputName = "image"
  private static let outputName = "embedding"

  private let size: Int
  private let model: CompiledModel
  private let inputs: [TensorBuffer]
  private let outputs: [TensorBuffer]

  /// - Parameters:
  ///   - path: The .tflite file.
  ///   - size: Side of the aligned crops that the model takes, in pixels.
  init(path: String, size: Int = 112) throws {
    let options = try Options()
    try options.setHardwareAccelerators([.cpu])
    self.size = size
    model = try CompiledModel(filePath: path, environment: Environment(), options: options)
    let input = try model.inputName(inputIndex: 0)
    let output = try model.outputName(outputIndex: 0)
    guard input == Self.inputName, output == Self.outputName else {
      throw Failure.otherTensors(input: input, output: output)
    }
    inputs = try model.createInputBuffers()
    outputs = try model.createOutputBuffers()
  }

  /// The embedding, of length 1, of a crop that is aligned by five landmarks.
  func embed(_ crop: CGImage) throws -> [Float] {
    guard crop.width == size, crop.height == size else {
      throw Failure.cropSize(width: crop.width, height: crop.height)
    }
    var pixels = [UInt8](repeating: 0, count: size * size * 4)
    pixels.withUnsafeMutableBytes { bytes in
      let context = CGContext(
        data: bytes.baseAddress,
        width: size,
        height: size,
        bitsPerComponent: 8,
        bytesPerRow: size * 4,
        space: CGColorSpace(name: CGColorSpace.sRGB)!,
        bitmapInfo: CGImageAlphaInfo.noneSkipLast.rawValue
      )
      context?.draw(crop, in: CGRect(x: 0, y: 0, width: size, height: size))
    }
    let image = pixels.indices.filter { $0 % 4 != 3 }.map { Float(pixels[$0]) }
    try inputs[0].write(image)
    try model.run(inputs: inputs, outputs: outputs)
    return try outputs[0].read()
  }
}
