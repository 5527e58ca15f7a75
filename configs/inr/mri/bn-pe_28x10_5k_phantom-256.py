_base_ = ['../_base_/networks/bn-pe_28x10.py', '../_base_/phantom-256_5k.py']
model = dict(
    operator=dict(type='mmext.MaskedFourierOperator', mask='gaussian'),
    network=dict(out_features=1, encoding=dict(num_octaves=5)),
)
