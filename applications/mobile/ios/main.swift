// Not compiled here: see README.md.
//
// A command line tool for macOS, which the same package serves:
//   FaceEmbedder face.tflite crop.png

import Foundation
import ImageIO

let arguments = CommandLine.arguments
guard arguments.count == 3 else {
  print("usage: \(arguments[0]) face.tflite crop.png")
  exit(2)
}
guard
  let source = CGImageSourceCreateWithURL(URL(fileURLWithPath: arguments[2]) as CFURL, nil),
  let crop = CGImageSourceCreateImageAtIndex(source, 0, nil)
else {
  print("\(arguments[2]) is not an image.")
  exit(1)
}
let embedding = try FaceEmbedder(path: arguments[1]).embed(crop)
print(embedding.map { String($0) }.joined(separator: ", "))
