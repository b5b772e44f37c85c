"""Distillation: linear attention learns what the softmax attention of a model does.

One denoiser is teacher and student: the teacher's call runs with its own attentions, the
student's with linear ones in their place. Only these learn; all other weights are there once.

    distilling all of it: from a `request` to an adapter
    finding, targets  the model that is distilled, and what is refused
    methods    what learns and how it is written: `linfusion`, for UNets, and `clear`, for
               transformers (`local`: their attention)
    data       what is learned from, looked at and made into samples
    captions   folders of pictures with captions
    making     latents and text states of pictures or of prompts, made once, on disk (`cache`)
    rendered   the built-in model's own pictures
    schedule   noise, and what is to be predicted; `calls`: of each family's denoiser
    loss       the published loss on a batch
    course     steps, states, several processes
    place      the folder that is worked in; `outputs`: what is there at the end

References:
    LinFusion: 1 GPU, 1 Minute, 16K Image, https://arxiv.org/abs/2409.02097
    CLEAR: Conv-Like Linearization Revs Pre-Trained Diffusion Transformers Up,
    https://arxiv.org/abs/2412.16112
"""
