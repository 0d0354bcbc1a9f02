// SPDX-License-Identifier: MIT

#include "textflag.h"

// MD5 of eight streams at once: each 32-bit word of a YMM register is of another
// stream. All sixteen words of the eight blocks are in registers, Y16 to Y31. The
// state is in Y0 to Y3. Needs AVX-512F and VL.

// QUARTER loads 16 bytes of each block, from off on, and puts the four words of
// all streams into m0 to m3.
#define QUARTER(off, m0, m1, m2, m3) \
	VMOVDQU     off(AX), X9             \
	VMOVDQU     off(BX), X10            \
	VMOVDQU     off(CX), X11            \
	VMOVDQU     off(DX), X12            \
	VINSERTI128 $1, off(SI), Y9, Y9     \
	VINSERTI128 $1, off(DI), Y10, Y10   \
	VINSERTI128 $1, off(R8), Y11, Y11   \
	VINSERTI128 $1, off(R9), Y12, Y12   \
	VPUNPCKLDQ  Y10, Y9, Y13            \
	VPUNPCKHDQ  Y10, Y9, Y9             \
	VPUNPCKLDQ  Y12, Y11, Y14           \
	VPUNPCKHDQ  Y12, Y11, Y11           \
	VPUNPCKLQDQ Y14, Y13, m0            \
	VPUNPCKHQDQ Y14, Y13, m1            \
	VPUNPCKLQDQ Y11, Y9, m2             \
	VPUNPCKHQDQ Y11, Y9, m3

// STEP is a step of RFC 1321: a = b + (a + f(b, c, d) + m + k) <<< s. f is the
// truth table of the round's function, k the number of the step's constant.
#define STEP(f, a, b, c, d, m, k, s) \
	VPADDD      m, a, a                 \
	VPADDD.BCST (4*k)(R10), a, a        \
	VMOVDQA     b, Y4                   \
	VPTERNLOGD  f, d, c, Y4             \
	VPADDD      Y4, a, a                \
	VPROLD      s, a, a                 \
	VPADDD      b, a, a

// func blocks8(state *[4][8]uint32, data *[8]*byte, k *[64]uint32, n int)
TEXT ·blocks8(SB), NOSPLIT, $0-32
	MOVQ state+0(FP), R12
	MOVQ data+8(FP), R13
	MOVQ k+16(FP), R10
	MOVQ n+24(FP), R11
	MOVQ 0(R13), AX
	MOVQ 8(R13), BX
	MOVQ 16(R13), CX
	MOVQ 24(R13), DX
	MOVQ 32(R13), SI
	MOVQ 40(R13), DI
	MOVQ 48(R13), R8
	MOVQ 56(R13), R9
	VMOVDQU 0(R12), Y0
	VMOVDQU 32(R12), Y1
	VMOVDQU 64(R12), Y2
	VMOVDQU 96(R12), Y3
	TESTQ R11, R11
	JLE  done

loop:
	VMOVDQA Y0, Y5
	VMOVDQA Y1, Y6
	VMOVDQA Y2, Y7
	VMOVDQA Y3, Y8
	QUARTER(0, Y16, Y17, Y18, Y19)
	QUARTER(16, Y20, Y21, Y22, Y23)
	QUARTER(32, Y24, Y25, Y26, Y27)
	QUARTER(48, Y28, Y29, Y30, Y31)


	// F, b ? c : d
	STEP($0xca, Y0, Y1, Y2, Y3, Y16, 0, $7)
	STEP($0xca, Y3, Y0, Y1, Y2, Y17, 1, $12)
	STEP($0xca, Y2, Y3, Y0, Y1, Y18, 2, $17)
	STEP($0xca, Y1, Y2, Y3, Y0, Y19, 3, $22)
	STEP($0xca, Y0, Y1, Y2, Y3, Y20, 4, $7)
	STEP($0xca, Y3, Y0, Y1, Y2, Y21, 5, $12)
	STEP($0xca, Y2, Y3, Y0, Y1, Y22, 6, $17)
	STEP($0xca, Y1, Y2, Y3, Y0, Y23, 7, $22)
	STEP($0xca, Y0, Y1, Y2, Y3, Y24, 8, $7)
	STEP($0xca, Y3, Y0, Y1, Y2, Y25, 9, $12)
	STEP($0xca, Y2, Y3, Y0, Y1, Y26, 10, $17)
	STEP($0xca, Y1, Y2, Y3, Y0, Y27, 11, $22)
	STEP($0xca, Y0, Y1, Y2, Y3, Y28, 12, $7)
	STEP($0xca, Y3, Y0, Y1, Y2, Y29, 13, $12)
	STEP($0xca, Y2, Y3, Y0, Y1, Y30, 14, $17)
	STEP($0xca, Y1, Y2, Y3, Y0, Y31, 15, $22)

	// G, d ? b : c
	STEP($0xe4, Y0, Y1, Y2, Y3, Y17, 16, $5)
	STEP($0xe4, Y3, Y0, Y1, Y2, Y22, 17, $9)
	STEP($0xe4, Y2, Y3, Y0, Y1, Y27, 18, $14)
	STEP($0xe4, Y1, Y2, Y3, Y0, Y16, 19, $20)
	STEP($0xe4, Y0, Y1, Y2, Y3, Y21, 20, $5)
	STEP($0xe4, Y3, Y0, Y1, Y2, Y26, 21, $9)
	STEP($0xe4, Y2, Y3, Y0, Y1, Y31, 22, $14)
	STEP($0xe4, Y1, Y2, Y3, Y0, Y20, 23, $20)
	STEP($0xe4, Y0, Y1, Y2, Y3, Y25, 24, $5)
	STEP($0xe4, Y3, Y0, Y1, Y2, Y30, 25, $9)
	STEP($0xe4, Y2, Y3, Y0, Y1, Y19, 26, $14)
	STEP($0xe4, Y1, Y2, Y3, Y0, Y24, 27, $20)
	STEP($0xe4, Y0, Y1, Y2, Y3, Y29, 28, $5)
	STEP($0xe4, Y3, Y0, Y1, Y2, Y18, 29, $9)
	STEP($0xe4, Y2, Y3, Y0, Y1, Y23, 30, $14)
	STEP($0xe4, Y1, Y2, Y3, Y0, Y28, 31, $20)

	// H, b ^ c ^ d
	STEP($0x96, Y0, Y1, Y2, Y3, Y21, 32, $4)
	STEP($0x96, Y3, Y0, Y1, Y2, Y24, 33, $11)
	STEP($0x96, Y2, Y3, Y0, Y1, Y27, 34, $16)
	STEP($0x96, Y1, Y2, Y3, Y0, Y30, 35, $23)
	STEP($0x96, Y0, Y1, Y2, Y3, Y17, 36, $4)
	STEP($0x96, Y3, Y0, Y1, Y2, Y20, 37, $11)
	STEP($0x96, Y2, Y3, Y0, Y1, Y23, 38, $16)
	STEP($0x96, Y1, Y2, Y3, Y0, Y26, 39, $23)
	STEP($0x96, Y0, Y1, Y2, Y3, Y29, 40, $4)
	STEP($0x96, Y3, Y0, Y1, Y2, Y16, 41, $11)
	STEP($0x96, Y2, Y3, Y0, Y1, Y19, 42, $16)
	STEP($0x96, Y1, Y2, Y3, Y0, Y22, 43, $23)
	STEP($0x96, Y0, Y1, Y2, Y3, Y25, 44, $4)
	STEP($0x96, Y3, Y0, Y1, Y2, Y28, 45, $11)
	STEP($0x96, Y2, Y3, Y0, Y1, Y31, 46, $16)
	STEP($0x96, Y1, Y2, Y3, Y0, Y18, 47, $23)

	// I, c ^ (b | ~d)
	STEP($0x39, Y0, Y1, Y2, Y3, Y16, 48, $6)
	STEP($0x39, Y3, Y0, Y1, Y2, Y23, 49, $10)
	STEP($0x39, Y2, Y3, Y0, Y1, Y30, 50, $15)
	STEP($0x39, Y1, Y2, Y3, Y0, Y21, 51, $21)
	STEP($0x39, Y0, Y1, Y2, Y3, Y28, 52, $6)
	STEP($0x39, Y3, Y0, Y1, Y2, Y19, 53, $10)
	STEP($0x39, Y2, Y3, Y0, Y1, Y26, 54, $15)
	STEP($0x39, Y1, Y2, Y3, Y0, Y17, 55, $21)
	STEP($0x39, Y0, Y1, Y2, Y3, Y24, 56, $6)
	STEP($0x39, Y3, Y0, Y1, Y2, Y31, 57, $10)
	STEP($0x39, Y2, Y3, Y0, Y1, Y22, 58, $15)
	STEP($0x39, Y1, Y2, Y3, Y0, Y29, 59, $21)
	STEP($0x39, Y0, Y1, Y2, Y3, Y20, 60, $6)
	STEP($0x39, Y3, Y0, Y1, Y2, Y27, 61, $10)
	STEP($0x39, Y2, Y3, Y0, Y1, Y18, 62, $15)
	STEP($0x39, Y1, Y2, Y3, Y0, Y25, 63, $21)

	VPADDD Y5, Y0, Y0
	VPADDD Y6, Y1, Y1
	VPADDD Y7, Y2, Y2
	VPADDD Y8, Y3, Y3
	ADDQ $64, AX
	ADDQ $64, BX
	ADDQ $64, CX
	ADDQ $64, DX
	ADDQ $64, SI
	ADDQ $64, DI
	ADDQ $64, R8
	ADDQ $64, R9
	DECQ R11
	JNZ  loop

done:
	VMOVDQU Y0, 0(R12)
	VMOVDQU Y1, 32(R12)
	VMOVDQU Y2, 64(R12)
	VMOVDQU Y3, 96(R12)
	VZEROUPPER
	RET
