_base_ = ['../_base_/networks/cn-pe_28x10.py', '../_base_/camera-256_5k.py']
# Trained on 64 x 64 block means, evaluated on 256 x 256: no octave above what the coarse pixels carry.
model = dict(
    operator=dict(type='mmext.Downsampling', factor=4),
    network=dict(out_features=1, encoding=dict(num_octaves=4)),
)
