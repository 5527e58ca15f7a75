_base_ = '../../inr/shape/pe_64x4_500_terrain-64.py'
train_cfg = dict(val_interval=250)
