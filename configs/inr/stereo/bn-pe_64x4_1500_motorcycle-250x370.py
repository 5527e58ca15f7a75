_base_ = './bn-pe_64x4_300_motorcycle-125x185.py'
pair = dict(size=250)
train_dataloader = dict(dataset=pair)
val_dataloader = dict(dataset=pair)
test_dataloader = dict(dataset=pair)
model = dict(operator=dict(max_disparity=36.0, blur=12.0, blur_steps=1000), network=dict(encoding=dict(num_octaves=5)))
train_cfg = dict(max_iters=1500, val_interval=500)
